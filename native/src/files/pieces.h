// The bytes of an engine file, cut into pieces that any thread can make in any order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "files/checkpoint.h"

namespace mobilemoe {

struct Piece {
  size_t offset = 0;  // in the engine file
  size_t bytes = 0;
  std::function<void(uint8_t*)> fill;  // writes all of them
};

// The bytes between the pieces are zeros. The pieces read the checkpoint's tensors, which must still exist.
struct Pieces {
  std::vector<Piece> all;
  size_t file_bytes = 0;
};

Pieces cut_engine_file(const Checkpoint& checkpoint);

}  // namespace mobilemoe
