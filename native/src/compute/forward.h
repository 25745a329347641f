// The forward pass: rows of several sequences through all layers, at most kMaxRows together.
#pragma once

#include <vector>

#include "compute/feed_forward.h"
#include "compute/kv_cache.h"
#include "kernels/kernels.h"
#include "model/model.h"
#include "threads/thread_pool.h"

namespace mobilemoe {

constexpr int kMaxRows = 512;  // rows of one pass: bounds the working memory

// Consecutive new tokens of one sequence.
struct Span {
  KvCache* kv;
  const int* tokens;
  int count;
  int position;               // of the first token
  const int* forced_experts;  // [count][layers][active], or null
  int* chosen_experts;
};

class Forward {
 public:
  Forward(const Model& model, const Kernels& kernels, ThreadPool& pool, bool fp32);

  // Appends the spans' keys and values; hidden() then holds the last layer's output, row by row.
  void run(const Span* spans, int count);

  // logits [vocab] behind row `rows[i]` of the pass just run; rows of `logits` are vocab_size apart.
  void logits(const int* rows, int count, float* logits);

 private:
  struct AttentionTask {
    int span, head, begin, end;  // tokens of the span
  };

  void reserve(int rows);
  void embed(const Span* spans, int count);
  void attention(const LayerWeights& layer, int index, const Span* spans, int count);
  void append_keys(const LayerWeights& layer, int index, const Span& span, int first_row, int head);
  void attend(int index, const Span& span, int first_row, int head, int begin, int end);
  void matmul(const Matrix& matrix, const uint8_t* inputs, size_t stride, int rows, float* outputs, size_t out_stride);

  const Model& model_;
  const Config& config_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  bool fp32_;
  int rows_ = 0, qkv_width_, k_begin_, v_begin_;
  std::vector<double> frequencies_;
  FeedForward feed_forward_;

  std::vector<float> x_, qkv_, queries_, attended_, cos_sin_, outputs_;
  std::vector<int> positions_, span_begin_;
  std::vector<uint8_t> inputs_;
  std::vector<RoutingHooks> hooks_;
  std::vector<AttentionTask> tasks_;
};

}  // namespace mobilemoe
