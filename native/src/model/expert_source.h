// Where routed experts come from that are not held in memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "model/matrix.h"

namespace mobilemoe {

class ExpertSource {
 public:
  virtual ~ExpertSource() = default;

  // The memory that one expert takes: a multiple of 4096 bytes.
  virtual size_t bytes() const = 0;

  // Writes an expert to `to`, a multiple of 4096; any thread may call it. Returns 0, or an errno.
  virtual int read(int layer, int expert, uint8_t* to) const = 0;

  // The expert that `read` wrote to `at`.
  virtual Ffn place(const uint8_t* at) const = 0;

  // Throws the Error(file) for what `read` returned.
  [[noreturn]] virtual void fail(int fault) const = 0;
};

}  // namespace mobilemoe
