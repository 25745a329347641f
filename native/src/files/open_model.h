// Opens a model, whichever kind of path the user names.
#pragma once

#include <string>

#include "model/model.h"

namespace mobilemoe {

// `path` is an engine file, or a checkpoint's folder, which is then repacked into memory. Throws Error(file),
// Error(config). Without `experts` the routed experts are not held in memory, which only an engine file makes possible:
// else Error(usage).
Model open_model(const std::string& path, bool experts = true);

}  // namespace mobilemoe
