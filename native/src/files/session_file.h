// A sequence on disk, so that a conversation can be continued after the program has ended.
//
// Bytes: 64 of header, the tokens, the blocks of keys and values in use by layer and head, and the SHA-256 of all that.
#pragma once

#include <string>
#include <vector>

#include "compute/sequence.h"
#include "model/model.h"

namespace mobilemoe {

// Writes the sequence with the fingerprint of the model that made it, for its owner to read. Throws Error(file).
void save_sequence(const Sequence& sequence, const std::string& path, const Fingerprint& model);

// Replaces what `sequence` holds by a saved one. Throws Error(file), and leaves it as it was, where the file is damaged
// or comes from another model, with another type of keys and values, or with more tokens than the sequence can hold.
void load_sequence(Sequence& sequence, const std::string& path, const Fingerprint& model);

// The tokens of a saved session of this model, without a look at the rest of the file: only `load_sequence` can tell
// whether that is whole. Throws Error(file).
std::vector<int> session_tokens(const std::string& path, KvType kv, const Fingerprint& model);

}  // namespace mobilemoe
