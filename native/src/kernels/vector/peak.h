// How fast an instruction set can multiply int8 at best: measured speeds are compared with it. P is a struct of
//   V, kProducts             a register of sums, and the multiply-adds of one instruction
//   kChains                  sums at a time: enough that none waits for its last product, and they fit into registers
//   fill(x), dot(acc, a, b)  int8 values; acc + the products of a and b
//   hide(v)                  makes the compiler forget what it knows about a register
#pragma once

#include "kernels/vector/unroll.h"

namespace mobilemoe::vector {

template <class P>
double multiply_adds() {
  constexpr int kChains = P::kChains;
  constexpr int kRounds = 4096;
  typename P::V sums[kChains];
  unroll<kChains>([&](auto chain) { sums[chain] = P::fill(0); });
  typename P::V a = P::fill(1);
  const typename P::V b = P::fill(1);
  for (int round = 0; round < kRounds; ++round) {
    unroll<kChains>([&](auto chain) {
      P::hide(a);  // or the compiler would compute equal products only once
      sums[chain] = P::dot(sums[chain], a, b);
    });
  }
  typename P::V total = P::fill(0);  // one value to hide: for twelve, GCC would store each in every round
  unroll<kChains>([&](auto chain) { total = P::dot(total, sums[chain], b); });
  P::hide(total);
  return static_cast<double>(P::kProducts) * kChains * kRounds;
}

}  // namespace mobilemoe::vector
