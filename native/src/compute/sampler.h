// Chooses the next token from logits, by the rules of mobilemoe.sampling in the same order.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

#include "compute/draw.h"
#include "compute/scores.h"
#include "kernels/dispatch.h"
#include "threads/thread_pool.h"

namespace mobilemoe {

struct Sampling {
  double temperature = 0;  // 0: greedy
  int top_k = 0;           // 0: off
  double top_p = 1;
  double min_p = 0;
  double repetition_penalty = 1;  // divides positive and multiplies negative logits of tokens seen, prompt included
  double presence_penalty = 0;    // subtracted once from the logits of tokens generated so far (not of the prompt's)
  double frequency_penalty = 0;   // subtracted once for each time that the token was generated
  uint64_t seed = 0;
  std::vector<std::pair<int, float>> logit_bias;  // added first
};

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
  int next_token(const float* logits, const uint32_t* allowed, ThreadPool* pool);
  int draw_of_top_k(const Scores& scores, double scale, uint64_t least);
  bool has_penalties() const;
  void change(const float* logits, const uint32_t* allowed, ThreadPool* pool);  // to scores_, by mask, bias, penalties
  void tell_logprobs(bool with_logprob, int top, ThreadPool* pool, Choice& choice);

  Sampling sampling_;
  int vocab_size_;
  uint64_t state_;
  std::unordered_map<int, int> seen_;  // how often each token was generated; 0: it was only in the prompt

  // Of the choice in progress; kept, so that the next one allocates little.
  Scores logits_, changed_;
  std::vector<float> scores_;
  DrawById by_id_;
  DrawByRank by_rank_;
  std::vector<Candidate> candidates_;
};

}  // namespace mobilemoe
