// RoPE in a config.json: rope_theta and rope_scaling, and the rope_parameters that transformers 5 made of them.
#pragma once

#include "files/json.h"
#include "model/config.h"

namespace mobilemoe {

// Reads the base and the scaling of `object` into `config`, whose windows are read; throws Error(config) where two keys
// contradict each other, or layers would differ.
void read_rope(const Json& object, Config& config);

}  // namespace mobilemoe
