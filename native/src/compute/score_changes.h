// What changes the scores of tokens before one is chosen: a mask, biases and penalties, in this order.
//
// A copy of all scores would have to be written to memory that is not in a cache: whoever looks at some of them copies
// these to where they stay in L1, and only the few that biases and penalties change are kept.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "compute/sampling.h"
#include "kernels/kernels.h"

namespace mobilemoe {

class ScoreChanges {
 public:
  ScoreChanges(const Sampling& sampling, const Kernels& kernels);

  void see(const int* tokens, int count);  // those of the prompt
  void take(int token);                    // one that was generated

  // Looks at the scores of all tokens. `allowed` has a bit for each, from the lowest of the first word; a token whose
  // bit is 0 scores -infinity. Null allows all. Returns whether anything changes.
  bool prepare(const float* scores, const uint32_t* allowed);

  bool allow_any(int begin, int end) const;  // of tokens [begin, end), where `begin` is a multiple of 32

  // changed [end - begin] = the scores of tokens [begin, end), where `begin` is a multiple of 32.
  void copy(int begin, int end, float* changed) const;

 private:
  struct Seen {
    int token;
    int times;  // that it was generated; 0: it was only in the prompt
  };

  float penalized(float score, int times) const;

  const Kernels& kernels_;
  double repetition_, presence_, frequency_;
  std::vector<std::pair<int, float>> biases_;  // both sorted by tokens, so that those of a range lie together
  std::vector<Seen> seen_;

  // Of the choice in progress.
  const float* scores_ = nullptr;
  const uint32_t* allowed_ = nullptr;
  std::vector<std::pair<int, float>> changed_;  // tokens, ascending, and their scores
};

}  // namespace mobilemoe
