#include "compute/forward.h"

#include <algorithm>
#include <cstring>

#include "compute/embedding.h"

namespace mobilemoe {
namespace {

constexpr int kLogitPanels = 8;  // panels of the output head that are computed together
constexpr int kLogitPieces = 4;  // of so many panels in a task of few rows

}  // namespace

Forward::Forward(const Model& model, const Kernels& kernels, ThreadPool& pool, bool fp32, ExpertCache* cache,
                 const RoutingOptions& routing)
    : model_(model),
      config_(model.config),
      kernels_(kernels),
      pool_(pool),
      cache_(cache),
      fp32_(fp32),
      attention_(config_, kernels, pool, fp32),
      feed_forward_(config_, kernels, pool, fp32, cache, routing) {}

void Forward::run(const Span* spans, int count) {
  rows_ = spans[count - 1].first_row + spans[count - 1].count;
  if (cache_ != nullptr) cache_->begin_pass(rows_);
  embed(spans, count);
  attention_.begin(spans, count);
  in_prompt_.clear();
  for (const Span* span = spans; span < spans + count; ++span) {
    in_prompt_.insert(in_prompt_.end(), static_cast<size_t>(span->count), span->count > 1 ? 1 : 0);
  }
  for (int index = 0; index < config_.num_hidden_layers; ++index) {
    const LayerWeights& layer = model_.layers[index];
    attention_.run(layer, index, x_[0]);
    feed_forward_.run(layer, rows_, x_[0], hooks_of(index, spans, count), in_prompt_.data());
    for (size_t i = 0; i < kept_layers_.size(); ++i) {
      if (kept_layers_[i] != index) continue;
      kept_[i].resize(rows_, config_.hidden_size);
      std::copy_n(x_[0], static_cast<size_t>(rows_) * config_.hidden_size, kept_[i][0]);
    }
  }
  if (cache_ != nullptr) cache_->end_pass();
}

void Forward::state(int row, float* state) {
  norm(row, state);
  for (Rows<float>& kept : kept_) std::copy_n(kept[row], config_.hidden_size, state += config_.hidden_size);
}

void Forward::embed(const Span* spans, int count) {
  x_.resize(rows_, config_.hidden_size);
  for_rows(pool_, rows_, [&](int row) {
    const Span& span = span_of(row, spans, count);
    read_row(model_.embedding, span.tokens[row - span.first_row], config_.hidden_size, x_[row]);
  });
}

// One for each row, or null where no span has any.
const RoutingHooks* Forward::hooks_of(int layer, const Span* spans, int count) {
  const auto is_hooked = [](const Span& s) { return s.forced_experts != nullptr || s.chosen_experts != nullptr; };
  if (std::none_of(spans, spans + count, is_hooked)) return nullptr;
  hooks_.clear();
  for (const Span* span = spans; span < spans + count; ++span) {
    for (ptrdiff_t token = 0; token < span->count; ++token) {
      const ptrdiff_t at = (token * config_.num_hidden_layers + layer) * config_.num_experts_per_tok;
      hooks_.push_back({span->forced_experts == nullptr ? nullptr : span->forced_experts + at,
                        span->chosen_experts == nullptr ? nullptr : span->chosen_experts + at});
    }
  }
  return hooks_.data();
}

void Forward::logits(const int* rows, int count, float* logits) {
  const Matrix& head = model_.head;
  const Form form = form_of(head, fp32_);
  normed_.resize(1, config_.hidden_size);
  inputs_.resize(count, input_bytes(head, form));
  for (int i = 0; i < count; ++i) {
    norm(rows[i], normed_[0]);
    kernels_.prepare[form](normed_[0], config_.hidden_size, inputs_[i]);
  }
  const size_t vocab = config_.vocab_size;
  const int panels = count <= kFewRows ? kLogitPieces * kLogitPanels : kLogitPanels;
  pool_.run(divide_up(head.panels(), panels), [&](int task, int) {
    const int begin = task * panels, end = std::min(begin + panels, head.panels());
    for (int first = 0; first < count; first += kTaskRows) {
      const int here = std::min(kTaskRows, count - first);
      constexpr int kWidth = kLogitPanels * kPanel;
      float piece[kTaskRows * kWidth];  // the last panel may reach beyond the vocabulary
      for (int panel = begin; panel < end; panel += kLogitPanels) {
        const int stop = std::min(panel + kLogitPanels, end),
                  next = stop < end ? stop : begin + pool_.threads() * panels;
        const int column = panel * kPanel, columns = std::min(stop * kPanel, config_.vocab_size) - column;
        const bool is_whole = columns == (stop - panel) * kPanel;
        float* out = logits + first * vocab + column;
        kernels_.matmul[form](head.before(head, next, next + kLogitPanels), panel, stop, inputs_[first],
                              inputs_.width(), here, is_whole ? out : piece, is_whole ? vocab : kWidth);
        for (int row = 0; row < here && !is_whole; ++row) {
          std::copy_n(piece + row * kWidth, columns, out + row * vocab);
        }
      }
    }
  });
}

}  // namespace mobilemoe
