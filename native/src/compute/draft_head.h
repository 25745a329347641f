// The draft head: one small layer that guesses the next tokens of texts (docs/guide.md, "Draft heads").
#pragma once

#include "compute/rows.h"
#include "kernels/kernels.h"
#include "model/draft_weights.h"
#include "model/model.h"
#include "threads/thread_pool.h"

namespace mobilemoe {

class DraftHead {
 public:
  struct Guess {
    int token;
    float probability;  // that the head gives it among its shortlist
  };

  DraftHead(DraftWeights weights, const Model& model, const Kernels& kernels, ThreadPool& pool, bool fp32);

  int hidden_size() const { return hidden_; }
  const std::vector<int>& layers() const { return weights_.layers; }
  // Floats of what it begins with: the outputs, at one token, of the model's last norm and of `layers`, side by side.
  int begin_size() const { return (1 + static_cast<int>(weights_.layers.size())) * hidden_; }

  // Guesses what follows the token `tokens[i]` in each of `count` texts, from `begins` [count][begin_size] of the
  // tokens before. `states` [count][hidden] are where it is then.
  void begin(const float* begins, const int* tokens, int count, float* states, Guess* guesses);
  // The same from the `states` on, which are replaced.
  void step(float* states, const int* tokens, int count, Guess* guesses);

 private:
  void guess(const Matrix& matrix, const float* from, const int* tokens, int count, float* states, Guess* guesses);
  void norm_and_prepare(int count);
  void product(const Matrix& matrix, Rows<uint8_t>& inputs, int count, Rows<float>& out);

  DraftWeights weights_;
  const Model& model_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  bool fp32_;
  int hidden_;
  float eps_;
  Rows<float> x_, normed_, outputs_, logits_;
  Rows<uint8_t> inputs_, units_;
};

}  // namespace mobilemoe
