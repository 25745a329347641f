// Sums and the exponential function over 16-lane vectors. S is the Simd struct of an instruction set.
#pragma once

#include <cstdint>

namespace mobilemoe::vector {

// The sum of the 16 lanes, added as a tree: lane i and lane i + 8, then 4, 2 and 1 apart.
template <class S>
inline float sum(typename S::F x) {
  float lane[16];
  S::store(lane, x);
  for (int step = 8; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) lane[i] += lane[i + step];
  return lane[0];
}

// The largest lane; NaN if there is one.
template <class S>
inline float max_lane(typename S::F x) {
  float lane[16];
  S::store(lane, x);
  for (int step = 8; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) lane[i] = lane[i] > lane[i + step] || lane[i] != lane[i] ? lane[i] : lane[i + step];
  return lane[0];
}

using FourInts = int32_t __attribute__((vector_size(16)));
using FourFloats = float __attribute__((vector_size(16)));

// The sum of 16 int32.
template <class S>
inline int32_t sum_i(typename S::I x) {
  alignas(64) int32_t lane[16];
  S::store_i(lane, x);
  FourInts part[4];
  __builtin_memcpy(part, lane, sizeof part);
  const FourInts all = part[0] + part[1] + (part[2] + part[3]);
  return all[0] + all[1] + (all[2] + all[3]);
}

// The largest of 16 floats, compared as numbers of the type of Four; where that is float, NaN may be ignored.
template <class Four>
inline auto largest_of_16(const float* lane) {
  Four part[4];
  __builtin_memcpy(part, lane, sizeof part);
  const Four low = part[0] > part[1] ? part[0] : part[1], high = part[2] > part[3] ? part[2] : part[3];
  const Four all = low > high ? low : high;
  const auto a = all[0] > all[1] ? all[0] : all[1], b = all[2] > all[3] ? all[2] : all[3];
  return a > b ? a : b;
}

// The largest of 16 magnitudes; NaN if there is one. Without signs, floats have the same order as their bits.
template <class S>
inline float largest_magnitude(typename S::F x) {
  alignas(64) float lane[16];
  S::store(lane, S::abs(x));
  const auto bits = largest_of_16<FourInts>(lane);
  float largest;
  __builtin_memcpy(&largest, &bits, sizeof largest);
  return largest;
}

// The largest lane, computed faster; NaN lanes may be ignored.
template <class S>
inline float largest_lane(typename S::F x) {
  alignas(64) float lane[16];
  S::store(lane, x);
  return largest_of_16<FourFloats>(lane);
}

// e^x within 2 ulp; 0 below -87.7 (-inf included), the largest finite power above 88.3; NaN stays NaN.
// Cody-Waite reduction to |r| <= ln(2) / 2, then a polynomial fitted for that range.
template <class S>
inline typename S::F exp(typename S::F x) {
  using F = typename S::F;
  x = S::min(S::set(88.3f), S::max(S::set(-88.0f), x));  // this order keeps NaN
  const typename S::I n = S::round(S::mul(x, S::set(1.44269504f)));
  const F nf = S::to_float(n);
  F r = S::fma(nf, S::set(-0.693359375f), x);  // ln(2) in two parts, the first with few bits
  r = S::fma(nf, S::set(2.12194440e-4f), r);
  F p = S::set(1.9875691e-4f);
  p = S::fma(p, r, S::set(1.3981999e-3f));
  p = S::fma(p, r, S::set(8.3334519e-3f));
  p = S::fma(p, r, S::set(4.1665796e-2f));
  p = S::fma(p, r, S::set(1.6666665e-1f));
  p = S::fma(p, r, S::set(5.0000000e-1f));
  p = S::fma(S::mul(p, r), r, S::add(r, S::set(1.0f)));
  return S::mul(p, S::as_float(S::shift_left(S::add_i(n, S::set_i(127)), 23)));  // n = -127 makes the factor 0
}

}  // namespace mobilemoe::vector
