// How fast an instruction set multiplies int8 at best, for shares of the machine's limit. P is a struct of
//   V, kProducts             a register of sums, and the multiply-adds of one instruction
//   fill(x), dot(acc, a, b)  int8 values; acc + the products of a and b
//   hide(v)                  takes from the compiler what it knows of a register
#pragma once

namespace mobilemoe::vector {

template <class P>
double multiply_adds() {
  constexpr int kChains = 12;  // enough that none waits for its last sum, and no more than AVX2 has registers for
  constexpr int kRounds = 4096;
  typename P::V sums[kChains];
  for (auto& sum : sums) sum = P::fill(0);
  typename P::V a = P::fill(1);
  const typename P::V b = P::fill(1);
  for (int round = 0; round < kRounds; ++round) {
    for (auto& sum : sums) {
      P::hide(a);  // or equal products are computed once
      sum = P::dot(sum, a, b);
    }
  }
  for (auto& sum : sums) P::hide(sum);
  return static_cast<double>(P::kProducts) * kChains * kRounds;
}

}  // namespace mobilemoe::vector
