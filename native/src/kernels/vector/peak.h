// How fast an instruction set can multiply int8 at best: measured speeds are compared with it. P is a struct of
//   V, kProducts             a register of sums, and the multiply-adds of one instruction
//   fill(x), dot(acc, a, b)  int8 values; acc + the products of a and b
//   hide(v)                  makes the compiler forget what it knows about a register
#pragma once

namespace mobilemoe::vector {

template <class P>
double multiply_adds() {
  constexpr int kChains = 12;  // enough that none waits for its last sum, and they still fit into AVX2's registers
  constexpr int kRounds = 4096;
  typename P::V sums[kChains];
  for (auto& sum : sums) sum = P::fill(0);
  typename P::V a = P::fill(1);
  const typename P::V b = P::fill(1);
  for (int round = 0; round < kRounds; ++round) {
    for (auto& sum : sums) {
      P::hide(a);  // or the compiler would compute equal products only once
      sum = P::dot(sum, a, b);
    }
  }
  for (auto& sum : sums) P::hide(sum);
  return static_cast<double>(P::kProducts) * kChains * kRounds;
}

}  // namespace mobilemoe::vector
