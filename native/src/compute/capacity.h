// Fewer products for prompts. A pass has pairs of a token and one of its experts; those that are skipped add nothing.
//
// pairs: of all pairs of the pass, the share C with the largest weights is computed. Nothing here has room for a fixed
// number of tokens, so no expert has to be spared.
//
// tokens: the batch-prioritised routing of Riquelme et al., "Scaling Vision with Sparse Mixture of Experts" (arXiv
// 2106.05974). An expert takes no more pairs than a share C of what it would have if all experts had equally many.
// First the best expert of every token is served, then the second, and so on, each time beginning with the tokens whose
// largest weight is largest.
//
// random: as many as by `pairs`, but any.
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
        skip_(options.skip) {}

  // Sets the experts [rows][active] of pairs to skip to kSkipped, among those rows that are in a prompt.
  // weights [rows][active].
  void skip(int layer, int rows, const uint8_t* in_prompt, int* experts, const float* weights);

  void count(RoutingUse& use) const {
    use.pairs = pairs_;
    use.skipped = skipped_;
  }

 private:
  void skip_pairs(int* experts);
  void skip_tokens(int* experts);

  const int active_, experts_;
  const double share_;
  const Skip skip_;
  std::vector<int> order_, load_;  // the pairs in the order they are served, and how many each expert has
  std::vector<float> keys_;        // of each pair: higher ones are served first
  uint64_t pairs_ = 0, skipped_ = 0;
};

}  // namespace mobilemoe
