// INT4 x INT8 products: a panel times a tile of rows, so that nibbles are split once for all rows of the tile.
#pragma once

#include <arm_neon.h>

#include "../vector/int8_products.h"
#include "dot.h"

namespace mobilemoe::neon {

// `Dot` makes the integer sums of a group (dot.h).
template <class Dot>
struct Products {
  using Tile = vector::PanelTile;
  static constexpr int kTileRows = 4;

  static int rows_of_tile(int rows_left) { return rows_left >= 4 ? 4 : rows_left >= 2 ? 2 : 1; }

  template <bool kHasScales>
  static void multiply(const Tile& tile, int rows) {
    switch (rows) {
      case 1:
        return multiply_rows<1, kHasScales>(tile);
      case 2:
        return multiply_rows<2, kHasScales>(tile);
      default:
        return multiply_rows<kTileRows, kHasScales>(tile);
    }
  }

  static float split_scales(const uint16_t* scales, float* share) {
    // fp16 without its sign is ordered as an integer is.
    uint16x8_t most = vdupq_n_u16(0);
    for (int i = 0; i < kGroup; i += 8) most = vmaxq_u16(most, vandq_u16(vld1q_u16(scales + i), vdupq_n_u16(0x7fff)));
    const float16x4_t largest_half = vreinterpret_f16_u16(vdup_n_u16(vmaxvq_u16(most)));
    const float largest = vgetq_lane_f32(vcvt_f32_f16(largest_half), 0);
    const float32x4_t inverse = vdupq_n_f32(largest > 0 ? 1.0f / largest : 0.0f);
    for (int i = 0; i < kGroup; i += 4) vst1q_f32(share + i, vmulq_f32(load_f16(scales + i), inverse));
    return largest;
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
  template <int kRows, bool kHasScales>
  static void multiply_rows(const Tile& tile) {
    float32x4_t sum[kRows][4];
    for (int row = 0; row < kRows; ++row)
      for (int i = 0; i < 4; ++i)
        sum[row][i] = tile.is_first ? vdupq_n_f32(0.0f) : vld1q_f32(output(tile, row) + 4 * i);
    const uint8_t* nibbles = tile.nibbles;
    const uint16_t* scales = tile.scales;
    const uint8_t* x = tile.x;
    for (int group = 0; group < tile.groups; ++group) {
      if (kRows == 1) vector::prefetch_group(tile.ahead, group);
      int32x4_t dot[kRows][4];
      Dot::template multiply<kRows>(nibbles, x, tile.x_stride, dot);
      for (int row = 0; row < kRows; ++row) {
        const float32x4_t scale = vdupq_n_f32(block(x, tile.x_stride, row)->scale);
        for (int i = 0; i < 4; ++i) {
          const float32x4_t both = kHasScales ? vmulq_f32(load_f16(scales + 4 * i), scale) : scale;
          sum[row][i] = vfmaq_f32(sum[row][i], vcvtq_f32_s32(dot[row][i]), both);
        }
      }
      nibbles += kGroupBytes;
      if (kHasScales) scales += kPanel;
      x += sizeof(Block);
    }
    for (int row = 0; row < kRows; ++row)
      for (int i = 0; i < 4; ++i) vst1q_f32(output(tile, row) + 4 * i, sum[row][i]);
  }

  static float* output(const Tile& tile, int row) { return tile.y + static_cast<size_t>(row) * tile.y_stride; }
  static float32x4_t load_f16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
  static int16x4_t rounded(const float* v, const float* share) {
    return vqmovn_s32(vcvtnq_s32_f32(vmulq_f32(vld1q_f32(v), vld1q_f32(share))));
  }
};

}  // namespace mobilemoe::neon
