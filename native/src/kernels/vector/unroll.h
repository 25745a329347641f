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

// The numbers 0 .. n - 1 as a type: CountsBelow<n>.
template <int... counts>
struct Counts {};
template <int n, int... counts>
struct CountsUntil : CountsUntil<n - 1, n - 1, counts...> {};
template <int... counts>
struct CountsUntil<0, counts...> {
  using type = Counts<counts...>;
};
template <int n>
using CountsBelow = typename CountsUntil<n>::type;

}  // namespace mobilemoe::vector
