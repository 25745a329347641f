// Keys of other models' config.json. A key that asks for a computation that this engine does not do is refused by name,
// never ignored. The C++ counterpart of mobilemoe.config_keys; a test of the Python package compares their verdicts.
#pragma once

#include <string>

#include "files/json.h"
#include "model/config.h"

namespace mobilemoe {

// A sentence about the first key of `object` that asks for another computation than `config` describes; empty if there
// is none. `config` has been read, except for the ids of its tokens.
std::string foreign_fault(const Json& object, const Config& config);

}  // namespace mobilemoe
