// Ways to route tokens otherwise than the model was trained, for speed: all are off unless asked for.
#pragma once

#include <cstdint>

namespace mobilemoe {

// Which pairs of a token and one of its experts a capacity leaves out (compute/capacity.h).
enum class Skip { pairs, tokens, random };

struct RoutingOptions {
  int experts_per_token = 0;  // fewer than the model's; 0: as many

  // Experts in memory are preferred (compute/cache_prior.h) with this strength, 0 being none; but the best `always_top`
  // of each token are chosen wherever they are, -1 being half of them.
  double cache_prior = 0;
  int always_top = -1;
  int cached_experts = 0;  // of each layer, in a cache that is only imitated; 0: the engine's own, under max_memory

  double capacity = 0;  // the share of the pairs of prompts that is computed; 0: all
  Skip skip = Skip::pairs;

  bool prefers_cached() const { return cache_prior > 0 || cached_experts > 0; }
  bool skips() const { return capacity > 0; }
  // Whether what a text gives depends on the texts before it, or on those beside it.
  bool depends_on_others() const { return cache_prior > 0 || skips(); }
};

// What came of it so far.
struct RoutingUse {
  uint64_t hits = 0, misses = 0;    // chosen experts that the imitated cache had, or not
  uint64_t pairs = 0, skipped = 0;  // of a token and one of its experts, in prompts under a capacity
};

}  // namespace mobilemoe
