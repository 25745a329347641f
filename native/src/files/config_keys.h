// Keys of other models' config.json: what is not computed here is refused by name, never passed over. The C++ twin of
// mobilemoe.config_keys; a test of the Python package compares their verdicts.
#pragma once

#include <string>

#include "files/json.h"
#include "model/config.h"

namespace mobilemoe {

// What the first key of `object` that means another computation than that of `config` is, in a sentence; empty if none
// does. `config` is complete but for its tokens.
std::string foreign_fault(const Json& object, const Config& config);

}  // namespace mobilemoe
