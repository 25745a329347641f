// Integer products of one group of 32 inputs: four outputs, a quarter of a panel, times the rows of one unit. All sums
// are exact. A struct Dot has
//   kRows                    rows of one unit
//   kVectors                 vectors of 4 sums: of 4 outputs of each row
//   Inputs, pack             a unit's group of inputs in the order in which `multiply` reads them
//   Weights, split           the nibbles of a quarter
//   multiply                 adds the sums of a unit and a quarter to its offsets
//   scale, by_output         the factors of the sums, in their order
//   load, store              four outputs of each row, in the order of the sums
//
// `Isa` does nothing but make the code of neon and of neon_i8mm different types, which the linker must not merge.
#pragma once

#include <arm_neon.h>

#include "kernels/kernels.h"
#include "kernels/vector/unroll.h"

namespace mobilemoe::neon {

using vector::Count;
using vector::unroll;

// One row's group of inputs in registers: a Block.
struct Group {
  int8x16_t q[2];
  float scale;
  int32_t offset;
};

// 4 inputs of 4 outputs of one row at a time.
template <class Isa>
struct Sdot {
  struct Peak {
    using V = int32x4_t;
    static constexpr int kProducts = 16;
    static constexpr int kChains = 12;
    static V fill(int8_t x) { return vreinterpretq_s32_s8(vdupq_n_s8(x)); }
    static V dot(V acc, V a, V b) { return vdotq_s32(acc, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b)); }
    static void hide(V& v) { __asm__ volatile("" : "+w"(v)); }
  };

  static constexpr int kRows = 1, kVectors = 1;
  using Inputs = Block;
  using Sums = float32x4_t[kVectors];

  static void pack(const Group (&rows)[kRows], Inputs* x) {
    vst1q_s8(x->q, rows[0].q[0]);
    vst1q_s8(x->q + 16, rows[0].q[1]);
    x->scale = rows[0].scale;
    x->offset = rows[0].offset;
  }

  struct Weights {
    int8x16_t of[8];  // inputs 4 i .. 4 i + 3 of 4 outputs
  };
  static __attribute__((always_inline)) Weights split(const uint8_t* nibbles) {
    Weights w;
    unroll<4>([&](auto run) __attribute__((always_inline)) {
      const uint8x16_t packed = vld1q_u8(nibbles + run * kRun);
      w.of[2 * run] = vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(15)));
      w.of[2 * run + 1] = vreinterpretq_s8_u8(vshrq_n_u8(packed, 4));
    });
    return w;
  }

  static __attribute__((always_inline)) void multiply(const Inputs& x, const Weights& w, int32x4_t (&dot)[kVectors]) {
    const int8x16_t first = vld1q_s8(x.q), second = vld1q_s8(x.q + 16);
    dot[0] = vdupq_n_s32(x.offset);
    unroll<4>([&](auto i)
                  __attribute__((always_inline)) { dot[0] = vdotq_laneq_s32(dot[0], w.of[i], first, i.value); });
    unroll<4>([&](auto i)
                  __attribute__((always_inline)) { dot[0] = vdotq_laneq_s32(dot[0], w.of[4 + i], second, i.value); });
  }

  static __attribute__((always_inline)) float32x4_t scale(const Inputs& x) { return vdupq_n_f32(x.scale); }
  static __attribute__((always_inline)) void by_output(float32x4_t scales, Sums& out) { out[0] = scales; }
  static __attribute__((always_inline)) void load(const float* y, size_t, int, Sums& sums) { sums[0] = vld1q_f32(y); }
  static __attribute__((always_inline)) void store(float* y, size_t, int, const Sums& sums) { vst1q_f32(y, sums[0]); }
};

#if defined(__ARM_FEATURE_MATMUL_INT8)

// 8 inputs of 2 outputs of two rows at a time. Each product of matrices wants 8 inputs of an output side by side, while
// a panel has 4 of them in one run and 4 in the next one: the still packed runs are zipped, which is half the work of
// zipping the nibbles. So the low nibbles are inputs 0 .. 3 and 8 .. 11 of a half of the group, and the high ones the
// others; `pack` gives the inputs the same order. The vectors of sums are squares: two outputs of one row, then of the
// other. They stay so until they are stored.
template <class Isa>
struct Smmla {
  struct Peak : Sdot<Isa>::Peak {
    static constexpr int kProducts = 32;
    using typename Sdot<Isa>::Peak::V;
    static V dot(V acc, V a, V b) { return vmmlaq_s32(acc, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b)); }
  };

  static constexpr int kRows = 2, kVectors = 2;
  using Sums = float32x4_t[kVectors];
  struct Inputs {
    int8_t q[4][16];
    int32_t offset[4];  // of the first row twice, then of the second
    float scale[4];
  };

  static void pack(const Group (&rows)[kRows], Inputs* x) {
    unroll<2>([&](auto half) __attribute__((always_inline)) {
      const int32x4_t first = vreinterpretq_s32_s8(rows[0].q[half]), second = vreinterpretq_s32_s8(rows[1].q[half]);
      vst1q_s8(x->q[2 * half], vreinterpretq_s8_s32(vuzp1q_s32(first, second)));
      vst1q_s8(x->q[2 * half + 1], vreinterpretq_s8_s32(vuzp2q_s32(first, second)));
    });
    vst1q_s32(x->offset, vcombine_s32(vdup_n_s32(rows[0].offset), vdup_n_s32(rows[1].offset)));
    vst1q_f32(x->scale, vcombine_f32(vdup_n_f32(rows[0].scale), vdup_n_f32(rows[1].scale)));
  }

  struct Weights {
    int8x16_t of[kVectors][4];
  };
  static __attribute__((always_inline)) Weights split(const uint8_t* nibbles) {
    Weights w;
    unroll<2>([&](auto half) __attribute__((always_inline)) {
      const uint32x4_t a = vreinterpretq_u32_u8(vld1q_u8(nibbles + 2 * half * kRun));
      const uint32x4_t b = vreinterpretq_u32_u8(vld1q_u8(nibbles + (2 * half + 1) * kRun));
      const uint8x16_t packed[] = {vreinterpretq_u8_u32(vzip1q_u32(a, b)), vreinterpretq_u8_u32(vzip2q_u32(a, b))};
      unroll<2>([&](auto vector) __attribute__((always_inline)) {
        w.of[vector][2 * half] = vreinterpretq_s8_u8(vandq_u8(packed[vector], vdupq_n_u8(15)));
        w.of[vector][2 * half + 1] = vreinterpretq_s8_u8(vshrq_n_u8(packed[vector], 4));
      });
    });
    return w;
  }

  static __attribute__((always_inline)) void multiply(const Inputs& x, const Weights& w, int32x4_t (&dot)[kVectors]) {
    dot[0] = dot[1] = vld1q_s32(x.offset);
    unroll<4>([&](auto i) __attribute__((always_inline)) {
      const int8x16_t inputs = vld1q_s8(x.q[i]);
      dot[0] = vmmlaq_s32(dot[0], inputs, w.of[0][i]);
      dot[1] = vmmlaq_s32(dot[1], inputs, w.of[1][i]);
    });
  }

  static __attribute__((always_inline)) float32x4_t scale(const Inputs& x) { return vld1q_f32(x.scale); }
  static __attribute__((always_inline)) void by_output(float32x4_t scales, Sums& out) {
    out[0] = vcombine_f32(vget_low_f32(scales), vget_low_f32(scales));
    out[1] = vcombine_f32(vget_high_f32(scales), vget_high_f32(scales));
  }
  static __attribute__((always_inline)) void load(const float* y, size_t stride, int rows, Sums& sums) {
    const float32x4_t first = vld1q_f32(y), second = rows > 1 ? vld1q_f32(y + stride) : first;
    sums[0] = vcombine_f32(vget_low_f32(first), vget_low_f32(second));
    sums[1] = vcombine_f32(vget_high_f32(first), vget_high_f32(second));
  }
  static __attribute__((always_inline)) void store(float* y, size_t stride, int rows, const Sums& sums) {
    vst1q_f32(y, vcombine_f32(vget_low_f32(sums[0]), vget_low_f32(sums[1])));
    if (rows > 1) vst1q_f32(y + stride, vcombine_f32(vget_high_f32(sums[0]), vget_high_f32(sums[1])));
  }
};

#endif

}  // namespace mobilemoe::neon
