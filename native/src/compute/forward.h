// The forward pass: rows of several sequences through all layers, at most kMaxRows together.
#pragma once

#include <vector>

#include "compute/attention.h"
#include "compute/feed_forward.h"
#include "compute/rows.h"
#include "compute/span.h"
#include "kernels/kernels.h"
#include "model/model.h"
#include "threads/thread_pool.h"

namespace mobilemoe {

constexpr int kMaxRows = 512;  // rows of one pass: bounds the working memory

class Forward {
 public:
  Forward(const Model& model, const Kernels& kernels, ThreadPool& pool, bool fp32, ExpertCache* cache,
          const RoutingOptions& routing = {});

  // Computes the last layer's output of every row, and appends the spans' keys and values to their caches.
  void run(const Span* spans, int count);

  // From now on keeps the outputs of these layers too.
  void keep(const std::vector<int>& layers) {
    kept_layers_ = layers;
    kept_.resize(layers.size());
  }

  // What the last norm gives for row `row` of the pass just run, [hidden].
  void norm(int row, float* normed) {
    kernels_.rms_norm(x_[row], model_.norm, config_.hidden_size, static_cast<float>(config_.rms_norm_eps), normed);
  }

  // The same, and then the outputs of the layers that it keeps, [1 + layers][hidden].
  void state(int row, float* state);

  RoutingUse routing_use() const { return feed_forward_.routing_use(); }

  // logits [vocab] of row `rows[i]` of the pass just run; rows of `logits` are vocab_size apart.
  void logits(const int* rows, int count, float* logits);

 private:
  void embed(const Span* spans, int count);
  const RoutingHooks* hooks_of(int layer, const Span* spans, int count);

  const Model& model_;
  const Config& config_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  ExpertCache* const cache_;  // of routed experts, or null
  bool fp32_;
  int rows_ = 0;
  Attention attention_;
  FeedForward feed_forward_;

  Rows<float> x_, normed_;
  std::vector<int> kept_layers_;
  std::vector<Rows<float>> kept_;  // their outputs, row by row
  Rows<uint8_t> inputs_;           // of the output head
  std::vector<RoutingHooks> hooks_;
  std::vector<uint8_t> in_prompt_;  // of each row
};

}  // namespace mobilemoe
