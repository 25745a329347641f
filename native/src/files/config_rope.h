// RoPE in a config.json: rope_theta and rope_scaling, or the rope_parameters that hold both since transformers 5.
#pragma once

#include "files/json.h"
#include "model/config.h"

namespace mobilemoe {

// Reads the base and the scaling of `object` into `config`, whose windows must have been read before. Throws
// Error(config) where two keys contradict each other or where layers would differ.
void read_rope(const Json& object, Config& config);

}  // namespace mobilemoe
