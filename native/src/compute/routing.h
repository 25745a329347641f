// Which experts a token visits, and with what weight (spec section 2, point 5).
#pragma once

#include "model/config.h"

namespace mobilemoe {

// logits [experts] -> experts [active] (best first; `forced` instead, if not null) and weights [active].
// bias takes part in the choice only. Ties go to the lowest index; NaN ranks below everything. scores [experts] is
// working memory.
void choose_experts(const Config& config, const float* logits, const float* bias, const int* forced, float* scores,
                    int* experts, float* weights);

}  // namespace mobilemoe
