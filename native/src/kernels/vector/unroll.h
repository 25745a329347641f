// Loops that the compiler unrolls completely.
#pragma once

namespace mobilemoe::vector {

template <int n>
struct Count {
  static constexpr int value = n;
  constexpr operator int() const { return n; }
};

// step(Count<0>()), ..., step(Count<n - 1>()). With an ordinary loop, GCC 12 would keep arrays of
// vectors in memory.
template <int n, class Step>
__attribute__((always_inline)) inline void unroll(const Step& step) {
  if constexpr (n > 0) {
    unroll<n - 1>(step);
    step(Count<n - 1>());
  }
}

}  // namespace mobilemoe::vector
