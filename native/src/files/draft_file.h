// draft.safetensors: the draft head of a model, beside its weights.
#pragma once

#include <string>

#include "model/config.h"
#include "model/draft_weights.h"

namespace mobilemoe {

// Reads the draft head in the file `path` for a model of `config`. Throws Error(file) where it is damaged or does not
// fit the model.
DraftWeights read_draft_file(const std::string& path, const Config& config);

}  // namespace mobilemoe
