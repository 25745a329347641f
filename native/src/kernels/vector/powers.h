// Sums of powers of scores, in floats. S is the Simd struct of an instruction set.
#pragma once

#include "kernels/kernels.h"
#include "kernels/vector/unroll.h"

namespace mobilemoe::vector {

// 2^(score * factor + offset) of 16 scores, each within 2^-23 of it. The whole part n of the exponent is taken off
// before anything is rounded; the rest is between -.501 and .501, for which the polynomial is fitted.
template <class S>
inline typename S::F power_of(typename S::F score, const Powers& powers) {
  using F = typename S::F;
  const F factor = S::set(powers.factor), offset = S::set(powers.offset);
  const typename S::I n = S::round(S::fma(score, factor, offset));
  F r = S::fma(score, factor, S::sub(offset, S::to_float(n)));
  r = S::fma(score, S::set(powers.factor_rest), r);
  F p = S::set(1.53532580e-4f);
  p = S::fma(p, r, S::set(1.33990031e-3f));
  p = S::fma(p, r, S::set(9.61843878e-3f));
  p = S::fma(p, r, S::set(5.55033199e-2f));
  p = S::fma(p, r, S::set(2.40226477e-1f));
  p = S::fma(p, r, S::set(6.93147182e-1f));
  p = S::fma(p, r, S::set(1.0f));
  return S::mul(p, S::as_float(S::shift_left(S::add_i(n, S::set_i(127)), 23)));
}

template <class S, int kSums>
void add_powers(const float* scores, int count, const Powers& powers, const float* least, double* sums) {
  using F = typename S::F;
  constexpr int kTogether = 128, kVectors = 4;
  double lane[kSums][16] = {};
  for (int begin = 0; begin < count; begin += kTogether) {
    const float* from = scores + begin;
    float tail[kTogether];
    if (count - begin < kTogether) {
      for (int i = 0; i < kTogether; ++i) tail[i] = begin + i < count ? from[i] : __builtin_nanf("");  // adds nothing
      from = tail;
    }
    F sum[kSums];
    for (int half = 0; half < 2; ++half) {
      F score[kVectors], power[kVectors];
      unroll<kVectors>([&](auto i) {
        score[i] = S::load(from + (kVectors * half + i) * 16);
        power[i] = power_of<S>(S::larger(score[i], S::set(powers.lowest)), powers);
      });
      unroll<kSums>([&](auto j) {
        const F low = S::set(least[j]);
        const auto kept = [&](int i) { return S::where(score[i], low, power[i]); };
        const F four = S::add(S::add(kept(0), kept(1)), S::add(kept(2), kept(3)));
        sum[j] = half == 0 ? four : S::add(sum[j], four);
      });
    }
    float part[kSums][16];
    unroll<kSums>([&](auto j) { S::store(part[j], sum[j]); });
    for (int j = 0; j < kSums; ++j) {
      for (int i = 0; i < 16; ++i) lane[j][i] += static_cast<double>(part[j][i]);
    }
  }
  for (int j = 0; j < kSums; ++j) {
    for (int step = 8; step > 0; step /= 2)
      for (int i = 0; i < step; ++i) lane[j][i] += lane[j][i + step];
    sums[j] = lane[j][0];
  }
}

}  // namespace mobilemoe::vector
