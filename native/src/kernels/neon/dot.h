// Integer sums of one group: a panel's 256 bytes of nibbles times the int8 inputs of some rows. All sums are exact.
#pragma once

#include <arm_neon.h>

#include "kernels/neon/simd.h"
#include "kernels/vector/int8_products.h"

namespace mobilemoe::neon {

using vector::block_of;

// The nibbles of one run: inputs 0 .. 3 (low) and 4 .. 7 (high) of outputs 4 i .. 4 i + 3.
struct Run {
  int8x16_t low[4], high[4];
};

inline Run split_run(const uint8_t* packed) {
  Run run;
  for (int i = 0; i < 4; ++i) {
    const uint8x16_t bytes = vld1q_u8(packed + 16 * i);
    run.low[i] = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15)));
    run.high[i] = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4));
  }
  return run;
}

// One row after the other, 4 inputs of 4 outputs at a time.
struct Sdot {
  struct Peak {
    using V = int32x4_t;
    static constexpr int kProducts = 16;
    static constexpr int kChains = 12;
    static V fill(int8_t x) { return vreinterpretq_s32_s8(vdupq_n_s8(x)); }
    static V dot(V acc, V a, V b) { return vdotq_s32(acc, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b)); }
    static void hide(V& v) { __asm__ volatile("" : "+w"(v)); }
  };

  template <int kRows>
  static void multiply_group(const uint8_t* nibbles, const uint8_t* x, size_t x_stride, Ints (&dot)[kRows]) {
    for (int row = 0; row < kRows; ++row)
      for (int i = 0; i < 4; ++i) dot[row].part[i] = vdupq_n_s32(block_of(x, x_stride, row)->offset);
    for (int r = 0; r < 4; ++r) {
      const Run run = split_run(nibbles + r * kRun);
      for (int row = 0; row < kRows; ++row) {
        const int8x8_t inputs = vld1_s8(block_of(x, x_stride, row)->q + 8 * r);
        for (int i = 0; i < 4; ++i) dot[row].part[i] = vdotq_lane_s32(dot[row].part[i], run.low[i], inputs, 0);
        for (int i = 0; i < 4; ++i) dot[row].part[i] = vdotq_lane_s32(dot[row].part[i], run.high[i], inputs, 1);
      }
    }
  }
};

#if defined(__ARM_FEATURE_MATMUL_INT8)

// Two rows at once, 8 inputs of 2 outputs at a time: each product of matrices gives 2 rows x 2 outputs.
struct Smmla {
  struct Peak : Sdot::Peak {
    static constexpr int kProducts = 32;
    static V dot(V acc, V a, V b) { return vmmlaq_s32(acc, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b)); }
  };

  template <int kRows>
  static void multiply_group(const uint8_t* nibbles, const uint8_t* x, size_t x_stride, Ints (&dot)[kRows]) {
    if constexpr (kRows == 1) {
      Sdot::multiply_group<1>(nibbles, x, x_stride, dot);
    } else {
      multiply_pairs<kRows / 2>(nibbles, x, x_stride, dot);
    }
  }

 private:
  template <int kPairs>
  static void multiply_pairs(const uint8_t* nibbles, const uint8_t* x, size_t x_stride, Ints (&dot)[2 * kPairs]) {
    int32x4_t square[kPairs][8];  // of outputs 2 i and 2 i + 1
    for (int pair = 0; pair < kPairs; ++pair) {
      const int32x2_t first = vdup_n_s32(block_of(x, x_stride, 2 * pair)->offset);
      const int32x2_t second = vdup_n_s32(block_of(x, x_stride, 2 * pair + 1)->offset);
      for (int i = 0; i < 8; ++i) square[pair][i] = vcombine_s32(first, second);
    }
    for (int r = 0; r < 4; ++r) {
      const Run run = split_run(nibbles + r * kRun);
      int8x16_t weights[8];
      for (int i = 0; i < 4; ++i) {
        const int32x4_t low = vreinterpretq_s32_s8(run.low[i]), high = vreinterpretq_s32_s8(run.high[i]);
        weights[2 * i] = vreinterpretq_s8_s32(vzip1q_s32(low, high));
        weights[2 * i + 1] = vreinterpretq_s8_s32(vzip2q_s32(low, high));
      }
      for (int pair = 0; pair < kPairs; ++pair) {
        const int8x16_t inputs = vcombine_s8(vld1_s8(block_of(x, x_stride, 2 * pair)->q + 8 * r),
                                             vld1_s8(block_of(x, x_stride, 2 * pair + 1)->q + 8 * r));
        for (int i = 0; i < 8; ++i) square[pair][i] = vmmlaq_s32(square[pair][i], inputs, weights[i]);
      }
    }
    for (int pair = 0; pair < kPairs; ++pair)
      for (int i = 0; i < 4; ++i) {
        const int32x4_t left = square[pair][2 * i], right = square[pair][2 * i + 1];
        dot[2 * pair].part[i] = vcombine_s32(vget_low_s32(left), vget_low_s32(right));
        dot[2 * pair + 1].part[i] = vcombine_s32(vget_high_s32(left), vget_high_s32(right));
      }
  }
};

#endif

}  // namespace mobilemoe::neon
