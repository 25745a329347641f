// What an INT4 checkpoint must hold: the C++ counterpart of mobilemoe.checkpoint.layout.
#pragma once

#include <string>

#include "files/safetensors.h"
#include "model/config.h"

namespace mobilemoe {

// Every tensor of the INT4 checkpoint that `config` describes: dtype and shape (spec 3.1, 3.5).
Tensors expected_tensors(const Config& config);

// Throws Error(config) unless the engine can lay out such a model: INT4, and all that is grouped a multiple of 32.
// `place` begins the message.
void check_int4(const Config& config, const std::string& place);

}  // namespace mobilemoe
