// The arithmetic of vector/int8_products.h on NEON.
#pragma once

#include <arm_neon.h>

#include "kernels/neon/dot.h"

namespace mobilemoe::neon {

// `Dot` has `multiply_group` (dot.h).
template <class Dot>
struct Products : Dot {
  using S = Simd<Dot>;
  static constexpr int kTileRows = 4;

  static constexpr int rows_of_tile(int rows_left) { return rows_left >= 4 ? 4 : rows_left >= 2 ? 2 : 1; }

  // Without their sign bits, fp16 numbers have the same order as integers.
  static float largest_magnitude(const uint16_t* scales) {
    uint16x8_t most = vdupq_n_u16(0);
    for (int i = 0; i < kGroup; i += 8) most = vmaxq_u16(most, vandq_u16(vld1q_u16(scales + i), vdupq_n_u16(0x7fff)));
    const float16x4_t largest = vreinterpret_f16_u16(vdup_n_u16(vmaxvq_u16(most)));
    return vgetq_lane_f32(vcvt_f32_f16(largest), 0);
  }

  static int32_t round_inputs(const float* v, const float* share, int8_t* q) {
    int32_t sum = 0;
    for (int i = 0; i < kGroup; i += 16) {
      const int16x8_t first = vcombine_s16(rounded(v + i, share + i), rounded(v + i + 4, share + i + 4));
      const int16x8_t second = vcombine_s16(rounded(v + i + 8, share + i + 8), rounded(v + i + 12, share + i + 12));
      const int8x16_t bytes = vcombine_s8(vqmovn_s16(first), vqmovn_s16(second));
      vst1q_s8(q + i, bytes);
      sum += vaddlvq_s8(bytes);
    }
    return sum;
  }

 private:
  static int16x4_t rounded(const float* v, const float* share) {
    return vqmovn_s32(vcvtnq_s32_f32(vmulq_f32(vld1q_f32(v), vld1q_f32(share))));
  }
};

}  // namespace mobilemoe::neon
