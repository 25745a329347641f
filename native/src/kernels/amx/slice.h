// A pair of panels unpacked into the form of tiles, up to 16 groups at a time: done once for all rows of a call.
#pragma once

#include "kernels/avx512/products.h"

namespace mobilemoe::amx {

using avx512::Simd;

constexpr int kSliceGroups = 16;  // 16 KiB of weights: they stay in L1 beside a block's inputs and products

struct Slice {
  // q of -8 .. 7, [8 runs of 4 inputs][16 outputs][4]: a signed product needs no correction by the inputs' sum.
  alignas(64) int8_t weights[kSliceGroups][2][8][kRun];
  // Axis::in: of the 16 outputs of either panel. Axis::out: of the 32 inputs, over the largest of them.
  alignas(64) float scales[kSliceGroups][2 * kPanel];
  float largest[kSliceGroups];  // Axis::out
};

inline void unpack_group(const uint8_t* nibbles, int8_t (&weights)[8][kRun]) {
  const __m512i low_mask = _mm512_set1_epi8(15), eight = _mm512_set1_epi8(8);
  for (int run = 0; run < 4; ++run) {
    const __m512i packed = _mm512_loadu_si512(nibbles + run * kRun);
    const __m512i low = _mm512_and_si512(packed, low_mask);
    const __m512i high = _mm512_and_si512(_mm512_srli_epi16(packed, 4), low_mask);
    _mm512_store_si512(weights[2 * run], _mm512_sub_epi8(low, eight));
    _mm512_store_si512(weights[2 * run + 1], _mm512_sub_epi8(high, eight));
  }
}

inline void fill_out_scales(const uint16_t* scales, int groups, Slice& slice) {
  for (int group = 0; group < groups; ++group, scales += kGroup) {
    const float largest = slice.largest[group] = avx512::Products::largest_magnitude(scales);
    const __m512 inverse = Simd::set(largest > 0 ? 1.0f / largest : 0.0f);
    for (int i = 0; i < kGroup; i += 16) {
      Simd::store(slice.scales[group] + i, Simd::mul(Simd::load_f16(scales + i), inverse));
    }
  }
}

// Groups [from, from + groups) of two panels, which may be the same one.
template <Axis axis>
inline void fill_slice(const Matrix& w, int first, int second, int from, int groups, Slice& slice) {
  const int panels[2] = {first, second};
  for (int side = 0; side < 2; ++side) {
    const uint8_t* nibbles = w.nibbles(panels[side]) + size_t{kGroupBytes} * from;
    const uint16_t* scales = w.scales(panels[side]) + size_t{kPanel} * from;
    for (int group = 0; group < groups; ++group) {
      unpack_group(nibbles + group * kGroupBytes, slice.weights[group][side]);
      if constexpr (axis == Axis::in) {
        Simd::store(slice.scales[group] + side * kPanel, Simd::load_f16(scales + group * kPanel));
      }
    }
  }
  if constexpr (axis == Axis::out) fill_out_scales(w.scales(first) + size_t{kGroup} * from, groups, slice);
}

}  // namespace mobilemoe::amx
