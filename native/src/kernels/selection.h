// Which scores are looked at: loops so plain that compilers turn them into vectors. `Isa` makes the code of each
// instruction set a function of its own, which the linker must not merge.
#pragma once

#include <cstdint>

namespace mobilemoe {

struct Bits {  // of[i] has the bit i alone
  constexpr Bits() : of() {
    for (int i = 0; i < 32; ++i) of[i] = 1U << i;
  }
  uint32_t of[32];
};

// `Kernels::allow` for one instruction set.
template <class Isa>
inline void allow(const float* scores, int count, const uint32_t* allowed, float* out) {
  static constexpr Bits kBits;
  for (int begin = 0; begin < count; begin += 32, ++allowed) {
    const uint32_t bits = *allowed;
    const auto copy = [&](int size) {
      for (int i = 0; i < size; ++i) {
        const float score = scores[begin + i];
        out[begin + i] = (bits & kBits.of[i]) != 0 ? score : -__builtin_inff();
      }
    };
    if (count - begin >= 32) {
      copy(32);
    } else {
      copy(count - begin);
    }
  }
}

}  // namespace mobilemoe
