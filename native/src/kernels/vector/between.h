// Which scores of a range there are. S is the Simd struct of an instruction set.
#pragma once

#include <cstdint>

namespace mobilemoe::vector {

template <class S>
int between(const float* scores, int count, float low, float high, int* found) {
  const int whole = count / 16 * 16;
  const typename S::F from = S::set(low), to = S::set(high);
  int size = 0;
  for (int begin = 0; begin < whole; begin += 16) {
    const uint32_t bits = S::between(S::load(scores + begin), from, to);
    S::store_places(bits, begin, found + size);
    size += __builtin_popcount(bits);
  }
  for (int i = whole; i < count; ++i) {
    found[size] = i;
    size += static_cast<int>(scores[i] >= low) & static_cast<int>(scores[i] <= high);
  }
  return size;
}

}  // namespace mobilemoe::vector
