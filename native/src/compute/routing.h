// Which experts a token visits, and with what weight (spec section 2, point 5).
#pragma once

#include "model/config.h"

namespace mobilemoe {

// Computes experts [active], best first, and their weights [active] from logits [experts]. If `forced` is not null, the
// experts are those. `bias` influences the choice but not the weights. Ties go to the lowest index; NaN ranks below
// everything. scores [experts] is working memory.
void choose_experts(const Config& config, const float* logits, const float* bias, const int* forced, float* scores,
                    int* experts, float* weights);

}  // namespace mobilemoe
