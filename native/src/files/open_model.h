// Opens a model, whichever kind of path the user names.
#pragma once

#include <string>

#include "model/model.h"

namespace mobilemoe {

// `path` is an engine file, or a checkpoint's folder, which is then repacked into memory. Throws Error(file),
// Error(config).
Model open_model(const std::string& path);

}  // namespace mobilemoe
