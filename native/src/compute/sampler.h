// Chooses the next token from logits, by the rules of mobilemoe.sampling in the same order.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "compute/draw.h"
#include "compute/float_draw.h"
#include "compute/sampling.h"
#include "compute/score_changes.h"
#include "compute/scores.h"
#include "kernels/dispatch.h"
#include "threads/thread_pool.h"

namespace mobilemoe {

struct Choice {
  int token;
  float logprob;                           // under the model itself: before bias, penalties and temperature
  std::vector<std::pair<int, float>> top;  // the likeliest tokens under the model, best first
};

// The same seed gives the same tokens for any number of threads and any instruction set.
class Sampler {
 public:
  // Throws Error(usage) that names the field.
  Sampler(Sampling sampling, int vocab_size, const Kernels& kernels = choose_kernels());
  void see(const int* tokens, int count);  // tells the sampler the tokens of the prompt
  // Ties go to the lowest id, NaN ranks below everything; throws Error(numerics) if nothing is usable. `top`: how many
  // likeliest tokens to report; with_logprob false leaves logprob 0 and saves the sum over the vocabulary. `allowed`: a
  // bit for each token, from the lowest of the first word; a token whose bit is 0 is never chosen, and null allows all.
  // The work is shared by the threads of the pool; null: done by the caller alone.
  Choice choose(const float* logits, bool with_logprob, int top, const uint32_t* allowed = nullptr,
                ThreadPool* pool = nullptr);

 private:
  int next_token(ThreadPool* pool);
  int draw_of_top_k(double scale, uint64_t least, double uniform);
  double log_of_sum(const float* logits, ThreadPool* pool);

  Sampling sampling_;
  int vocab_size_;
  uint64_t state_;
  ScoreChanges changes_;

  // Of the choice in progress; kept, so that the next one allocates little.
  Scores scores_;
  FloatDraw in_floats_;
  DrawById by_id_;
  DrawByRank by_rank_;
  std::vector<Candidate> candidates_;
};

}  // namespace mobilemoe
