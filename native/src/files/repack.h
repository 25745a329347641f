// From a checkpoint to an engine file, on the disk or in memory.
#pragma once

#include <cstddef>
#include <string>

#include "files/checkpoint.h"
#include "model/model.h"

namespace mobilemoe {

// Rewrites the INT4 checkpoint in `folder` as the engine file `path`: every nibble and scale is kept. Written beside
// its target, fsynced and renamed; two processes may do it at once. `origin` may be null. `progress` may be null:
// called with (done, total) bytes, it stops the work by returning false (throws Error(usage)).
void write_engine_file(const std::string& folder, const std::string& path, const Fingerprint* origin,
                       bool (*progress)(size_t, size_t, void*), void* context);

// The same into memory, for machines without a place to write to.
Model repack_in_memory(const std::string& folder);

// The same from a checkpoint that is open, whose tensors are needed no longer afterwards.
Model repack_in_memory(const Checkpoint& checkpoint);

}  // namespace mobilemoe
