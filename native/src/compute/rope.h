// Rotary position embedding (RoPE): by how much each pair of a head's elements is rotated per position.
#pragma once

#include <vector>

#include "model/config.h"

namespace mobilemoe {

// freq_R in radians per position, head_dim / 2 of them (spec section 2, point 4).
std::vector<double> rope_frequencies(const Config& config);

}  // namespace mobilemoe
