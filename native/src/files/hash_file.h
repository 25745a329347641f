// The hash that an engine file carries of itself.
#pragma once

#include <string>

#include "model/model.h"

namespace mobilemoe {

int file_threads();  // for reading and hashing one file, which gain little from more threads than this

// The tree_hash of the file, the bytes of its header's hash taken as zeros. Throws Error(file).
Fingerprint hash_engine_file(const std::string& path);

}  // namespace mobilemoe
