// The attention half of a layer as one operator: norm, queries, keys and values, QK-norm, RoPE, attention over the
// cache and the output projection (spec section 2, point 4).
#pragma once

#include <vector>

#include "compute/rows.h"
#include "compute/span.h"
#include "kernels/kernels.h"
#include "model/model.h"
#include "threads/thread_pool.h"

namespace mobilemoe {

class Attention {
 public:
  Attention(const Config& config, const Kernels& kernels, ThreadPool& pool, bool fp32);

  // Prepares what all layers of a pass share. The spans must live until its last layer has run.
  void begin(const Span* spans, int count);

  // x [rows][hidden] += Attention(RMSNorm(x)) for layer `index`; appends the spans' keys and values to their caches.
  void run(const LayerWeights& layer, int index, float* x);

 private:
  struct Task {
    const Span* span;
    int head, begin, end;  // a KV head and tokens of the span
    int split;             // of their keys; -1: all
  };

  void multiply(const Matrix& matrix, const Matrix& after, Rows<float>& outputs);
  void attend_all(const LayerWeights& layer, int index);
  void append_keys(const LayerWeights& layer, int index, const Span& span, int head);
  void attend(int index, const Task& task);
  int count_splits(int index) const;
  void gather_heads(int index, int row, float* heads);

  const Config& config_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  bool fp32_;
  int kv_heads_, group_;               // query heads that share one KV head
  int k_begin_, v_begin_, qkv_width_;  // of a row of qkv_
  std::vector<double> frequencies_;

  const Span* spans_ = nullptr;
  int count_ = 0, rows_ = 0;
  Rows<uint8_t> inputs_;            // of a matrix product, in the form that the matrix wants
  Rows<float> scratch_;             // a row on its way to inputs_, or what the output projection gives
  Rows<float> qkv_, cos_sin_;       // [rows]
  Rows<int> positions_;             // [rows][group]
  Rows<float> queries_, attended_;  // [KV heads x rows][group x head_dim]
  int splits_ = 0;                  // of the keys in tasks of their own; 0: every task takes all keys
  Rows<float> states_;              // [KV heads x rows][group][splits][split_state_size]
  std::vector<Task> tasks_;
};

}  // namespace mobilemoe
