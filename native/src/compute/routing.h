// Which experts a token visits, and with what weight (spec section 2, point 5).
#pragma once

#include <cstdint>

#include "model/config.h"

namespace mobilemoe {

// That some experts be chosen rather than the router says: compute/cache_prior.h.
struct Preference {
  const uint8_t* cached;  // [experts], 1 for those
  float bonus;            // on their logits
  int always_top;         // so many of the router's own best are chosen in any case
};

// Computes experts [active], best first, and their weights [active] from logits [experts]. If `forced` is not null, the
// experts are those. `bias` influences the choice but not the weights. Ties go to the lowest index; NaN ranks below
// everything. A `preference`, if not null, changes the choice, but not the weights that a choice has. scores [experts],
// with a preference [2 * experts], is working memory.
void choose_experts(const Config& config, const float* logits, const float* bias, const int* forced, float* scores,
                    int* experts, float* weights, const Preference* preference = nullptr);

}  // namespace mobilemoe
