// The settings by which tokens are chosen, in the order in which they apply: those of mobilemoe.sampling.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

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

}  // namespace mobilemoe
