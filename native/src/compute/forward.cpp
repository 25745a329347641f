#include "compute/forward.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "compute/embedding.h"
#include "compute/rope.h"
#include "compute/rows.h"

namespace mobilemoe {
namespace {

constexpr int kTaskPanels = 8;    // panels of a matrix task over many rows
constexpr int kTaskQueries = 96;  // query rows of an attention task
constexpr int kLogitPanels = 4;   // panels of an output head's piece, which is copied to its place

}  // namespace

Forward::Forward(const Model& model, const Kernels& kernels, ThreadPool& pool, bool fp32)
    : model_(model),
      config_(model.config),
      kernels_(kernels),
      pool_(pool),
      fp32_(fp32),
      k_begin_(round_up(config_.q_width(), kPanel)),
      v_begin_(k_begin_ + round_up(config_.kv_width(), kPanel)),
      frequencies_(rope_frequencies(config_)),
      feed_forward_(config_, kernels, pool, fp32) {
  qkv_width_ = v_begin_ + round_up(config_.kv_width(), kPanel);
}

void Forward::reserve(int rows) {
  const size_t n = static_cast<size_t>(rows);
  const size_t widest = static_cast<size_t>(std::max(config_.hidden_size, config_.q_width()));
  grow(x_, n * static_cast<size_t>(config_.hidden_size));
  grow(qkv_, n * static_cast<size_t>(qkv_width_));
  grow(queries_, n * static_cast<size_t>(config_.q_width()));
  grow(attended_, n * static_cast<size_t>(config_.q_width()));
  grow(cos_sin_, n * static_cast<size_t>(config_.head_dim));
  grow(outputs_, n * (widest + kGroup));
  grow(positions_, n * static_cast<size_t>(config_.num_attention_heads / config_.num_key_value_heads));
  grow(inputs_, n * (widest / kGroup + 1) * form_bytes(fp32_ ? Form::floats : Form::scaled));
  grow(hooks_, n);
}

// Rows' embeddings, angles and positions.
void Forward::embed(const Span* spans, int count) {
  const int group = config_.num_attention_heads / config_.num_key_value_heads;
  span_begin_.assign(1, 0);
  for (int i = 0; i < count; ++i) span_begin_.push_back(span_begin_.back() + spans[i].count);
  rows_ = span_begin_.back();
  reserve(rows_);
  for_rows(pool_, rows_, [&](size_t r) {
    const int row = static_cast<int>(r);
    const auto after = std::upper_bound(span_begin_.begin(), span_begin_.end(), row);
    const Span& span = spans[after - span_begin_.begin() - 1];
    const int token = row - *(after - 1), position = span.position + token;
    read_row(model_.embedding, span.tokens[token], config_.hidden_size,
             &x_[r * static_cast<size_t>(config_.hidden_size)]);
    float* cos_sin = &cos_sin_[r * static_cast<size_t>(config_.head_dim)];
    for (size_t pair = 0; pair < frequencies_.size(); ++pair) {
      cos_sin[2 * pair] = static_cast<float>(std::cos(position * frequencies_[pair]));
      cos_sin[2 * pair + 1] = static_cast<float>(std::sin(position * frequencies_[pair]));
    }
    for (int i = 0; i < group; ++i) positions_[r * static_cast<size_t>(group) + static_cast<size_t>(i)] = position;
  });
}

void Forward::run(const Span* spans, int count) {
  embed(spans, count);
  const bool hooked = std::any_of(
      spans, spans + count, [](const Span& s) { return s.forced_experts != nullptr || s.chosen_experts != nullptr; });
  for (int index = 0; index < config_.num_hidden_layers; ++index) {
    const LayerWeights& layer = model_.layers[static_cast<size_t>(index)];
    attention(layer, index, spans, count);
    for (int i = 0; hooked && i < count; ++i) {
      for (int token = 0; token < spans[i].count; ++token) {
        const ptrdiff_t at =
            (static_cast<ptrdiff_t>(token) * config_.num_hidden_layers + index) * config_.num_experts_per_tok;
        RoutingHooks& hook = hooks_[static_cast<size_t>(span_begin_[static_cast<size_t>(i)] + token)];
        hook.forced = spans[i].forced_experts == nullptr ? nullptr : spans[i].forced_experts + at;
        hook.chosen = spans[i].chosen_experts == nullptr ? nullptr : spans[i].chosen_experts + at;
      }
    }
    feed_forward_.run(layer, rows_, x_.data(), hooked ? hooks_.data() : nullptr);
  }
}

// x += o(attention(norm(x)))
void Forward::attention(const LayerWeights& layer, int index, const Span* spans, int count) {
  const size_t hidden = static_cast<size_t>(config_.hidden_size), heads = static_cast<size_t>(config_.q_width());
  const float eps = static_cast<float>(config_.rms_norm_eps);
  const auto stride = [&](const Matrix& w) { return input_bytes(w, form_of(w, fp32_)); };
  for_rows(pool_, rows_, [&](size_t r) {
    float* normed = &outputs_[r * hidden];
    kernels_.rms_norm(&x_[r * hidden], layer.input_norm, config_.hidden_size, eps, normed);
    kernels_.prepare[static_cast<int>(form_of(layer.qkv, fp32_))](normed, config_.hidden_size,
                                                                  &inputs_[r * stride(layer.qkv)]);
  });
  matmul(layer.qkv, inputs_.data(), stride(layer.qkv), rows_, qkv_.data(), static_cast<size_t>(qkv_width_));
  if (config_.qk_norm == QkNorm::projection_weight) {
    for_rows(pool_, rows_, [&](size_t r) {
      float* q = &qkv_[r * static_cast<size_t>(qkv_width_)];
      kernels_.rms_norm(q, layer.q_norm, config_.q_width(), eps, q);
      kernels_.rms_norm(q + k_begin_, layer.k_norm, config_.kv_width(), eps, q + k_begin_);
    });
  }

  const int kv_heads = config_.num_key_value_heads;
  const int tokens_per_task = std::max(1, kTaskQueries * kv_heads / config_.num_attention_heads);
  if (rows_ == count) {  // every sequence has one token: its keys and its attention in one task for each head
    pool_.run(count * kv_heads, [&](int task, int) {
      const int span = task / kv_heads, head = task % kv_heads;
      append_keys(layer, index, spans[span], span, head);
      attend(index, spans[span], span, head, 0, 1);
    });
  } else {
    pool_.run(count * kv_heads, [&](int task, int) {
      const int span = task / kv_heads;
      append_keys(layer, index, spans[span], span_begin_[static_cast<size_t>(span)], task % kv_heads);
    });
    tasks_.clear();
    for (int span = 0; span < count; ++span) {  // the last tokens see the most keys: longest tasks first
      for (int end = spans[span].count; end > 0; end -= tokens_per_task) {
        for (int head = 0; head < kv_heads; ++head)
          tasks_.push_back({span, head, std::max(0, end - tokens_per_task), end});
      }
    }
    pool_.run(static_cast<int>(tasks_.size()), [&](int i, int) {
      const AttentionTask& task = tasks_[static_cast<size_t>(i)];
      const int first_row = span_begin_[static_cast<size_t>(task.span)];
      attend(index, spans[task.span], first_row, task.head, task.begin, task.end);
    });
  }
  for_rows(pool_, rows_, [&](size_t r) {  // from [KV head][row] back to [row][head]
    const size_t part = heads / static_cast<size_t>(kv_heads);
    float* mixed = &outputs_[r * heads];
    for (size_t head = 0; head < static_cast<size_t>(kv_heads); ++head) {
      std::memcpy(mixed + head * part, &attended_[(head * static_cast<size_t>(rows_) + r) * part],
                  part * sizeof(float));
    }
    kernels_.prepare[static_cast<int>(form_of(layer.o, fp32_))](mixed, config_.q_width(),
                                                                &inputs_[r * stride(layer.o)]);
  });
  const size_t padded = static_cast<size_t>(layer.o.outputs);
  matmul(layer.o, inputs_.data(), stride(layer.o), rows_, outputs_.data(), padded);
  for_rows(pool_, rows_,
           [&](size_t r) { kernels_.add_scaled(&outputs_[r * padded], 1.0f, config_.hidden_size, &x_[r * hidden]); });
}

// Turns and norms one KV head's keys and queries of a span; keys and values go into the cache.
void Forward::append_keys(const LayerWeights& layer, int index, const Span& span, int first_row, int head) {
  const int head_dim = config_.head_dim, group = config_.num_attention_heads / config_.num_key_value_heads;
  const size_t width = static_cast<size_t>(head_dim), group_width = static_cast<size_t>(group) * width;
  const float eps = static_cast<float>(config_.rms_norm_eps);
  uint8_t* blocks = span.kv->blocks(index, head);
  const auto turn = [&](float* x, const float* weight, const float* cos_sin) {
    if (config_.qk_norm == QkNorm::head_weight) kernels_.rms_norm(x, weight, head_dim, eps, x);
    kernels_.rope(x, head_dim, head_dim, cos_sin);
    if (config_.qk_norm == QkNorm::head) kernels_.rms_norm(x, nullptr, head_dim, eps, x);
  };
  for (int token = 0; token < span.count; ++token) {
    const size_t row = static_cast<size_t>(first_row + token);
    float* all = &qkv_[row * static_cast<size_t>(qkv_width_)];
    const float* cos_sin = &cos_sin_[row * width];
    float* key = all + k_begin_ + static_cast<size_t>(head) * width;
    turn(key, layer.k_norm, cos_sin);
    const int position = span.position + token;
    kernels_.kv_append[static_cast<int>(span.kv->type())](
        key, all + v_begin_ + static_cast<size_t>(head) * width, head_dim, position % kKvBlock,
        blocks + static_cast<size_t>(position / kKvBlock) * span.kv->block_bytes());
    float* queries = &queries_[(static_cast<size_t>(head) * static_cast<size_t>(rows_) + row) * group_width];
    std::memcpy(queries, all + static_cast<size_t>(head) * group_width, group_width * sizeof(float));
    for (int i = 0; i < group; ++i) turn(queries + static_cast<size_t>(i) * width, layer.q_norm, cos_sin);
  }
}

void Forward::attend(int index, const Span& span, int first_row, int head, int begin, int end) {
  const size_t group = static_cast<size_t>(config_.num_attention_heads / config_.num_key_value_heads);
  const size_t width = static_cast<size_t>(config_.head_dim);
  const size_t row = static_cast<size_t>(first_row + begin);
  const size_t at = (static_cast<size_t>(head) * static_cast<size_t>(rows_) + row) * group * width;
  AttendArgs args{};
  args.q = &queries_[at];
  args.q_stride = width;
  args.position = &positions_[row * group];
  args.rows = (end - begin) * static_cast<int>(group);
  args.window = config_.window[static_cast<size_t>(index)];
  args.kv = span.kv->blocks(index, head);
  args.head_dim = config_.head_dim;
  args.scale = static_cast<float>(config_.attention_scale);
  args.out = &attended_[at];
  args.out_stride = width;
  kernels_.attend[static_cast<int>(span.kv->type())](args);
}

void Forward::matmul(const Matrix& matrix, const uint8_t* inputs, size_t stride, int rows, float* outputs,
                     size_t out_stride) {
  const int pieces = divide_up(rows, kTaskRows), rows_each = divide_up(rows, pieces);
  // One row: 8 panels at once reach the memory's full speed, if that leaves enough tasks for balance.
  const int decode_panels = std::max(2, std::min(matrix.panels() / (3 * pool_.threads()), 32) / 8 * 8);
  const int panels = rows == 1 ? decode_panels : kTaskPanels, columns = divide_up(matrix.panels(), panels);
  pool_.run(pieces * columns, [&](int task, int) {
    const int row = task / columns * rows_each, begin = task % columns * panels;
    const size_t r = static_cast<size_t>(row);
    kernels_.matmul[static_cast<int>(form_of(matrix, fp32_))](
        matrix, begin, std::min(begin + panels, matrix.panels()), inputs + r * stride, stride,
        std::min(rows_each, rows - row), outputs + r * out_stride + begin * kPanel, out_stride);
  });
}

void Forward::logits(const int* rows, int count, float* logits) {
  const size_t hidden = static_cast<size_t>(config_.hidden_size), vocab = static_cast<size_t>(config_.vocab_size);
  const Matrix& head = model_.head;
  const Form form = form_of(head, fp32_);
  const size_t stride = input_bytes(head, form);
  grow(inputs_, static_cast<size_t>(count) * stride);
  for (int i = 0; i < count; ++i) {
    float* normed = outputs_.data();
    kernels_.rms_norm(&x_[static_cast<size_t>(rows[i]) * hidden], model_.norm, config_.hidden_size,
                      static_cast<float>(config_.rms_norm_eps), normed);
    kernels_.prepare[static_cast<int>(form)](normed, config_.hidden_size, &inputs_[static_cast<size_t>(i) * stride]);
  }
  const int panels = count == 1 ? 8 * kLogitPanels : kLogitPanels;
  pool_.run(divide_up(head.panels(), panels), [&](int task, int) {
    const int begin = task * panels, end = std::min(begin + panels, head.panels());
    for (int first = 0; first < count; first += kTaskRows) {
      const int here = std::min(kTaskRows, count - first);
      float piece[kTaskRows * kLogitPanels * kPanel];  // the last panel may reach beyond the vocabulary
      for (int panel = begin; panel < end; panel += kLogitPanels) {
        constexpr size_t width = kLogitPanels * kPanel;
        kernels_.matmul[static_cast<int>(form)](head, panel, std::min(panel + kLogitPanels, end),
                                                &inputs_[static_cast<size_t>(first) * stride], stride, here, piece,
                                                width);
        const size_t column = static_cast<size_t>(panel) * kPanel;
        const size_t columns = std::min(width, std::min(vocab, static_cast<size_t>(end) * kPanel) - column);
        for (int row = 0; row < here; ++row) {
          std::memcpy(logits + static_cast<size_t>(first + row) * vocab + column,
                      piece + static_cast<size_t>(row) * width, columns * sizeof(float));
        }
      }
    }
  });
}

}  // namespace mobilemoe
