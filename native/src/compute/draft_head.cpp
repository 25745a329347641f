#include "compute/draft_head.h"

#include <algorithm>
#include <cmath>

#include "compute/embedding.h"

namespace mobilemoe {
namespace {

constexpr int kTaskPanels = 8;    // panels of a task: as many streams from memory at once
constexpr int kGateUpPanels = 4;  // 32 gates and 32 ups, from which one group of hidden units is computed

}  // namespace

DraftHead::DraftHead(DraftWeights weights, const Model& model, const Kernels& kernels, ThreadPool& pool, bool fp32)
    : weights_(std::move(weights)),
      model_(model),
      kernels_(kernels),
      pool_(pool),
      fp32_(fp32),
      hidden_(model.config.hidden_size),
      eps_(static_cast<float>(model.config.rms_norm_eps)) {}

void DraftHead::begin(const float* begins, const int* tokens, int count, float* states, Guess* guesses) {
  guess(weights_.first_proj, begins, tokens, count, states, guesses);
}

void DraftHead::step(float* states, const int* tokens, int count, Guess* guesses) {
  guess(weights_.in_proj, states, tokens, count, states, guesses);
}

// The inputs of `matrix` are vectors of `hidden`: those of a text in `from`, then the embedding of its token.
void DraftHead::guess(const Matrix& matrix, const float* from, const int* tokens, int count, float* states,
                      Guess* guesses) {
  const Ffn& ffn = weights_.ffn;
  const Form form = form_of(matrix, fp32_);
  const int shortlist = static_cast<int>(weights_.shortlist.size()), vectors = matrix.inputs / hidden_ - 1;
  x_.resize(count, hidden_);
  normed_.resize(count, matrix.inputs);
  inputs_.resize(count, input_bytes(matrix, form));
  for (int row = 0; row < count; ++row) {
    read_row(model_.embedding, tokens[row], hidden_, x_[row]);
    for (int i = 0; i <= vectors; ++i) {
      const float* vector = i == vectors ? x_[row] : from + (static_cast<size_t>(row) * vectors + i) * hidden_;
      kernels_.rms_norm(vector, nullptr, hidden_, eps_, normed_[row] + static_cast<size_t>(i) * hidden_);
    }
    kernels_.prepare[form](normed_[row], matrix.inputs, inputs_[row]);
  }
  product(matrix, inputs_, count, x_);

  norm_and_prepare(count);
  units_.resize(count, input_bytes(ffn.down, form));
  pool_.run(ffn.width / kGroup, [&](int group, int) {
    for (int first = 0; first < count; first += kTaskRows) {
      const int rows = std::min(kTaskRows, count - first), panel = group * kGateUpPanels;
      constexpr int kWidth = kGateUpPanels * kPanel;
      float both[kTaskRows * kWidth];
      kernels_.matmul[form](ffn.gate_up, panel, panel + kGateUpPanels, inputs_[first], inputs_.width(), rows, both,
                            kWidth);
      kernels_.swiglu[form](both, kWidth, rows, units_[first] + group * form_bytes(form), units_.width());
    }
  });
  outputs_.resize(count, hidden_);
  product(ffn.down, units_, count, outputs_);
  for (int row = 0; row < count; ++row) {
    kernels_.add_scaled(outputs_[row], 1.0f, hidden_, x_[row]);
    std::copy_n(x_[row], hidden_, states + static_cast<size_t>(row) * hidden_);
  }

  norm_and_prepare(count);
  logits_.resize(count, shortlist);
  product(weights_.head, inputs_, count, logits_);
  for (int row = 0; row < count; ++row) {
    const float* logits = logits_[row];
    const ptrdiff_t best = std::max_element(logits, logits + shortlist) - logits;
    const float log_sum = kernels_.log_sum_exp(logits, shortlist);
    guesses[row] = {weights_.shortlist[best], std::exp(logits[best] - log_sum)};
  }
}

// inputs_ for a product with a matrix of `hidden` inputs.
void DraftHead::norm_and_prepare(int count) {
  const Form form = form_of(weights_.head, fp32_);
  inputs_.resize(count, input_bytes(weights_.head, form));
  for (int row = 0; row < count; ++row) {
    kernels_.rms_norm(x_[row], nullptr, hidden_, eps_, normed_[row]);
    kernels_.prepare[form](normed_[row], hidden_, inputs_[row]);
  }
}

void DraftHead::product(const Matrix& matrix, Rows<uint8_t>& inputs, int count, Rows<float>& out) {
  const Form form = form_of(matrix, fp32_);
  pool_.run(divide_up(matrix.panels(), kTaskPanels), [&](int task, int) {
    const int begin = task * kTaskPanels, end = std::min(begin + kTaskPanels, matrix.panels());
    kernels_.matmul[form](matrix, begin, end, inputs[0], inputs.width(), count, out[0] + begin * kPanel, out.width());
  });
}

}  // namespace mobilemoe
