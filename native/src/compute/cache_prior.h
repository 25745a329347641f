// Routing that prefers experts in memory: the cache-prior re-ranking of Skliar et al., "Mixture of Cache-Conditional
// Experts for Efficient Mobile Device Inference" (arXiv 2412.00099).
//
// The router's logits of experts in memory are raised by lambda times the layer's average range of logits (the largest
// less the smallest, averaged over all tokens so far). By the order of these the experts of a token are chosen, but the
// best few by the router alone in any case; they are weighed as if the router had chosen them.
#pragma once

#include <cstdint>
#include <vector>

#include "compute/routing.h"
#include "compute/routing_options.h"
#include "model/config.h"

namespace mobilemoe {

class CachePrior {
 public:
  CachePrior(const Config& config, const RoutingOptions& options);

  // Whether the cache is imitated, in which case each token is routed as if all before it had been computed one by one.
  bool is_imitated() const { return places_ > 0; }

  // [experts]: which of the layer's are in memory. Who has a real cache keeps it up to date.
  uint8_t* cached(int layer) { return &cached_[static_cast<size_t>(layer) * config_.num_local_experts]; }

  // Of the layer as it is, for choose_experts.
  Preference preference(int layer);

  // choose_experts for the next token of this layer. An imitated cache then has the chosen ones.
  void choose(int layer, const float* logits, const float* bias, const int* forced, float* scores, int* experts,
              float* weights);

  void count(RoutingUse& use) const {
    use.hits = hits_;
    use.misses = misses_;
  }

 private:
  struct Layer {
    double ranges = 0;  // the sum of those of `tokens` tokens
    uint64_t tokens = 0;
    std::vector<int> recent;  // of an imitated cache: its experts, the one that was used last first
  };

  void use(int layer, const int* experts);

  const Config& config_;
  const double strength_;
  const int always_top_;
  const size_t places_;
  std::vector<Layer> layers_;
  std::vector<uint8_t> cached_;
  uint64_t hits_ = 0, misses_ = 0;
};

}  // namespace mobilemoe
