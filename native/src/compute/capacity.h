// Fewer products for prompts: the batch-prioritised routing of Riquelme et al., "Scaling Vision with Sparse Mixture of
// Experts" (arXiv 2106.05974).
//
// Of the pairs of a token and one of its experts an expert takes no more than its capacity, which is a share C of what
// it would have if all experts had equally many. First the best expert of every token is served, then the second, and
// so on, each time beginning with the tokens whose largest weight is largest. A pair that finds its expert full adds
// nothing. A capacity is never below kFewRows pairs, since up to there more of them take no more time.
#pragma once

#include <cstdint>
#include <vector>

#include "compute/routing_options.h"
#include "model/config.h"

namespace mobilemoe {

constexpr int kSkipped = -1;  // stands for the expert of a pair that is not computed

class Capacity {
 public:
  Capacity(const Config& config, const RoutingOptions& options)
      : active_(config.num_experts_per_tok),
        experts_(config.num_local_experts),
        share_(options.capacity),
        at_random_(options.skips_at_random) {}

  // Of the pairs of those rows that are in a prompt, sets the experts [rows][active] of all that find theirs full to
  // kSkipped. weights [rows][active].
  void skip(int layer, int rows, const uint8_t* in_prompt, int* experts, const float* weights);

  void count(RoutingUse& use) const {
    use.pairs = pairs_;
    use.skipped = skipped_;
  }

 private:
  void order_by_weight(int rows, const uint8_t* in_prompt, const float* weights);
  void order_at_random(int layer, int rows, const uint8_t* in_prompt);

  const int active_, experts_;
  const double share_;
  const bool at_random_;
  std::vector<int> rows_, order_, load_;  // rows by priority, pairs in the order they are served, pairs of each expert
  std::vector<float> priorities_;
  std::vector<uint64_t> places_;
  uint64_t pairs_ = 0, skipped_ = 0;
};

}  // namespace mobilemoe
