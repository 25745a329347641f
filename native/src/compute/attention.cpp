#include "compute/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "compute/rope.h"

namespace mobilemoe {
namespace {

constexpr int kTaskPanels = 8;    // panels of a matrix task
constexpr int kTaskQueries = 96;  // query rows of an attention task

struct KeyRange {
  int begin, end;
};

// The keys that tokens [begin, end) of a span see in a layer with this window (0: none).
KeyRange keys_of(const Span& span, int begin, int end, int window) {
  const int first = span.position + begin;
  return {window > 0 ? std::max(0, first + 1 - window) : 0, span.position + end};
}

}  // namespace

Attention::Attention(const Config& config, const Kernels& kernels, ThreadPool& pool, bool fp32)
    : config_(config),
      kernels_(kernels),
      pool_(pool),
      fp32_(fp32),
      kv_heads_(config.num_key_value_heads),
      group_(config.num_attention_heads / config.num_key_value_heads),
      k_begin_(round_up(config.q_width(), kPanel)),
      v_begin_(k_begin_ + round_up(config.kv_width(), kPanel)),
      qkv_width_(v_begin_ + round_up(config.kv_width(), kPanel)),
      frequencies_(rope_frequencies(config)) {}

void Attention::begin(const Span* spans, int count) {
  spans_ = spans;
  count_ = count;
  rows_ = spans[count - 1].first_row + spans[count - 1].count;
  cos_sin_.resize(rows_, config_.head_dim);
  positions_.resize(rows_, group_);
  for_rows(pool_, rows_, [&](int row) {
    const Span& span = span_of(row, spans_, count_);
    const int position = span.position + row - span.first_row;
    std::fill_n(positions_[row], group_, position);
    float* cos_sin = cos_sin_[row];
    for (const double frequency : frequencies_) {
      *cos_sin++ = static_cast<float>(std::cos(position * frequency));
      *cos_sin++ = static_cast<float>(std::sin(position * frequency));
    }
  });
}

void Attention::run(const LayerWeights& layer, int index, float* x) {
  const int hidden = config_.hidden_size, q_width = config_.q_width();
  const float eps = static_cast<float>(config_.rms_norm_eps);
  const auto x_of = [&](int row) { return x + static_cast<size_t>(row) * hidden; };

  const Form qkv_form = form_of(layer.qkv, fp32_);
  inputs_.resize(rows_, input_bytes(layer.qkv, qkv_form));
  scratch_.resize(rows_, hidden);
  for_rows(pool_, rows_, [&](int row) {
    float* normed = scratch_[row];
    kernels_.rms_norm(x_of(row), layer.input_norm, hidden, eps, normed);
    kernels_.prepare[qkv_form](normed, hidden, inputs_[row]);
  });
  qkv_.resize(rows_, qkv_width_);
  multiply(layer.qkv, layer.o, qkv_);
  if (config_.qk_norm == QkNorm::projection_weight) {
    for_rows(pool_, rows_, [&](int row) {
      float *q = qkv_[row], *k = q + k_begin_;
      kernels_.rms_norm(q, layer.q_norm, q_width, eps, q);
      kernels_.rms_norm(k, layer.k_norm, config_.kv_width(), eps, k);
    });
  }

  attend_all(layer, index);

  const Form o_form = form_of(layer.o, fp32_);
  inputs_.resize(rows_, input_bytes(layer.o, o_form));
  scratch_.resize(rows_, q_width);
  for_rows(pool_, rows_, [&](int row) {
    gather_heads(index, row, scratch_[row]);
    kernels_.prepare[o_form](scratch_[row], q_width, inputs_[row]);
  });
  scratch_.resize(rows_, layer.o.outputs);
  multiply(layer.o, layer.shared.gate_up, scratch_);
  for_rows(pool_, rows_, [&](int row) { kernels_.add_scaled(scratch_[row], 1.0f, hidden, x_of(row)); });
}

// outputs = matrix x inputs_, after which `after` is read.
void Attention::multiply(const Matrix& matrix, const Matrix& after, Rows<float>& outputs) {
  const int pieces = divide_up(rows_, kTaskRows), rows_each = divide_up(rows_, pieces);
  // Tasks of 8 panels; fewer where few rows would otherwise give the threads too few tasks to finish together.
  const int each_third = std::max(2, matrix.panels() / (3 * pool_.threads()) / 2 * 2);  // Axis::out needs pairs
  const int panels = rows_ > kFewRows ? kTaskPanels : std::min(kTaskPanels, each_third);
  const int columns = divide_up(matrix.panels(), panels);
  const auto product = kernels_.matmul[form_of(matrix, fp32_)];
  const int tasks = pieces * columns;
  pool_.run(tasks, [&](int task, int) {
    const int row = task / columns * rows_each, begin = task % columns * panels;
    const int next = task + pool_.threads(), next_begin = (next < tasks ? next % columns : next - tasks) * panels;
    product(matrix.before(next < tasks ? matrix : after, next_begin, next_begin + panels), begin,
            std::min(begin + panels, matrix.panels()), inputs_[row], inputs_.width(), std::min(rows_each, rows_ - row),
            outputs[row] + begin * kPanel, outputs.width());
  });
}

// Computes attended_, or states_ of splits_, from qkv_, and appends keys and values to the caches on the way.
void Attention::attend_all(const LayerWeights& layer, int index) {
  queries_.resize(kv_heads_ * rows_, group_ * config_.head_dim);
  attended_.resize(kv_heads_ * rows_, group_ * config_.head_dim);
  splits_ = count_splits(index);
  states_.resize(kv_heads_ * rows_, group_ * splits_ * split_state_size(config_.head_dim));
  if (rows_ == count_ && splits_ == 0) {  // one token of every sequence: keys and attention in one task for each head
    const int tasks = count_ * kv_heads_;
    pool_.run(tasks, [&](int task, int) {
      const Span& span = spans_[task / kv_heads_];
      const int head = task % kv_heads_;
      if (const int next = task + pool_.threads(); next < tasks) {
        const Span& other = spans_[next / kv_heads_];
        const uint8_t* block = other.kv->block(index, next % kv_heads_, other.position / kKvBlock);
        for (size_t at = 0; at < other.kv->block_bytes(); at += 64) __builtin_prefetch(block + at, 0, 2);
      }
      append_keys(layer, index, span, head);
      attend(index, {&span, head, 0, 1, -1});
    });
    return;
  }
  pool_.run(count_ * kv_heads_,
            [&](int task, int) { append_keys(layer, index, spans_[task / kv_heads_], task % kv_heads_); });
  const int tokens_per_task = std::max(1, kTaskQueries / group_);
  tasks_.clear();
  // The last tokens of a span see the most keys, so the longest tasks come first.
  for (const Span* span = spans_; span < spans_ + count_; ++span) {
    for (int end = span->count; end > 0; end -= tokens_per_task) {
      const int begin = std::max(0, end - tokens_per_task);
      const KeyRange keys = keys_of(*span, begin, end, config_.window[index]);
      for (int head = 0; head < kv_heads_; ++head) {
        if (splits_ == 0) tasks_.push_back({span, head, begin, end, -1});
        for (int split = keys.begin / kKvSplit; split < std::min(splits_, divide_up(keys.end, kKvSplit)); ++split) {
          tasks_.push_back({span, head, begin, end, split});
        }
      }
    }
  }
  pool_.run(static_cast<int>(tasks_.size()), [&](int task, int) { attend(index, tasks_[task]); });
}

// Applies RoPE and QK-norm to the keys and queries of one KV head, and appends its keys and values to the cache.
void Attention::append_keys(const LayerWeights& layer, int index, const Span& span, int head) {
  const int head_dim = config_.head_dim, group_width = group_ * head_dim;
  const float eps = static_cast<float>(config_.rms_norm_eps);
  const auto turn = [&](float* x, const float* weight, const float* cos_sin) {
    if (config_.qk_norm == QkNorm::head_weight) kernels_.rms_norm(x, weight, head_dim, eps, x);
    kernels_.rope(x, head_dim, head_dim, cos_sin);
    if (config_.qk_norm == QkNorm::head) kernels_.rms_norm(x, nullptr, head_dim, eps, x);
  };
  for (int token = 0; token < span.count; ++token) {
    const int row = span.first_row + token, position = span.position + token;
    const float* cos_sin = cos_sin_[row];
    float* key = qkv_[row] + k_begin_ + head * head_dim;
    const float* value = qkv_[row] + v_begin_ + head * head_dim;
    turn(key, layer.k_norm, cos_sin);
    uint8_t* block = span.kv->block(index, head, position / kKvBlock);
    kernels_.kv_append[span.kv->type()](key, value, head_dim, position % kKvBlock, block);
    float* queries = queries_[head * rows_ + row];
    std::copy_n(qkv_[row] + head * group_width, group_width, queries);
    for (int i = 0; i < group_; ++i) turn(queries + i * head_dim, layer.q_norm, cos_sin);
  }
}

void Attention::attend(int index, const Task& task) {
  const Span& span = *task.span;
  const int row = span.first_row + task.begin, at = task.head * rows_ + row;
  AttendArgs args{};
  args.q = queries_[at];
  args.q_stride = config_.head_dim;
  args.position = positions_[row];
  args.rows = (task.end - task.begin) * group_;
  args.window = config_.window[index];
  args.kv = span.kv->block(index, task.head, 0);
  args.head_dim = config_.head_dim;
  args.scale = static_cast<float>(config_.attention_scale);
  args.split = task.split;
  if (task.split < 0) {
    args.out = attended_[at];
    args.out_stride = config_.head_dim;
  } else {
    const int size = split_state_size(config_.head_dim);
    args.out = states_[at] + task.split * size;
    args.out_stride = splits_ * size;
  }
  kernels_.attend[span.kv->type()](args);
}

// How many splits of keys the longest span has, if the tasks of a pass are few for the threads and its contexts are
// long; otherwise 0. The results are the same either way.
int Attention::count_splits(int index) const {
  const int tokens_per_task = std::max(1, kTaskQueries / group_);
  int tasks = 0, splits = 0;
  bool is_long = false;
  for (const Span* span = spans_; span < spans_ + count_; ++span) {
    const KeyRange keys = keys_of(*span, 0, span->count, config_.window[index]);
    tasks += divide_up(span->count, tokens_per_task) * kv_heads_;
    splits = std::max(splits, divide_up(keys.end, kKvSplit));
    is_long |= keys.end - keys.begin > kKvSplit;
  }
  return is_long && tasks < 2 * pool_.threads() ? splits : 0;
}

// heads [q_width] = what a row's heads have attended to.
void Attention::gather_heads(int index, int row, float* heads) {
  const int width = group_ * config_.head_dim;
  for (int head = 0; head < kv_heads_; ++head, heads += width) {
    const int at = head * rows_ + row;
    if (splits_ == 0) {
      std::copy_n(attended_[at], width, heads);
      continue;
    }
    const Span& span = span_of(row, spans_, count_);
    const int token = row - span.first_row, size = split_state_size(config_.head_dim);
    const KeyRange keys = keys_of(span, token, token + 1, config_.window[index]);
    const int first = keys.begin / kKvSplit, count = divide_up(keys.end, kKvSplit) - first;
    for (int i = 0; i < group_; ++i) {
      kernels_.merge_splits(states_[at] + (i * splits_ + first) * size, count, config_.head_dim,
                            heads + i * config_.head_dim);
    }
  }
}

}  // namespace mobilemoe
