// The feed-forward half of a layer as one operator: norm, router, top-k, permutation, gate and up, SwiGLU, down and the
// weighted sum, with the shared expert in the same lists of tasks (spec section 2, point 5).
#pragma once

#include <vector>

#include "kernels/kernels.h"
#include "model/model.h"
#include "threads/thread_pool.h"

namespace mobilemoe {

// Experts that a caller forces upon a row, and where to note a row's choice: [active] each, or null.
struct RoutingHooks {
  const int* forced = nullptr;
  int* chosen = nullptr;
};

class FeedForward {
 public:
  FeedForward(const Config& config, const Kernels& kernels, ThreadPool& pool, bool fp32);

  // x [rows][hidden] += FFN(RMSNorm(x)). hooks: one for each row, or null.
  void run(const LayerWeights& layer, int rows, float* x, const RoutingHooks* hooks);

 private:
  // A piece of one FFN's work: rows of its permuted input, and groups of 32 hidden units or panels of outputs.
  struct Task {
    const Ffn* ffn;
    size_t input_row;  // among the shared expert's rows or the permuted pairs
    size_t row;        // the same for what is written: differs in decode, where all experts read one input
    int rows, begin, end;
    bool shared;
  };

  void reserve(const LayerWeights& layer, int rows);
  void decode(const LayerWeights& layer, float* x, const RoutingHooks* hooks);
  void prefill(const LayerWeights& layer, int rows, float* x, const RoutingHooks* hooks);
  void route(const LayerWeights& layer, int row, const RoutingHooks* hooks);
  void sort_pairs(int rows);
  void list_tasks(const LayerWeights& layer, int rows, int units, int units_per_task, int shared_units);
  void gate_up(const Task& task);
  void down(const Task& task);

  const Config& config_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  bool fp32_;
  int active_, experts_, padded_experts_, hidden_;

  // Row-major working memory; strides in bytes for prepared groups.
  std::vector<float> normed_, logits_, scores_, weights_, outputs_, shared_outputs_;
  std::vector<int> chosen_, expert_begin_, pair_row_, pair_of_;
  std::vector<uint8_t> inputs_, shared_inputs_, hidden_units_, shared_hidden_units_;
  size_t input_stride_ = 0, shared_input_stride_ = 0, hidden_stride_ = 0, shared_hidden_stride_ = 0;
  std::vector<Task> tasks_;
};

}  // namespace mobilemoe
