// INT4 x INT8 products: a panel times a tile of rows, so that nibbles are split once for all rows of the tile.
#pragma once

#include <immintrin.h>

#include "../vector/int8_products.h"

namespace mobilemoe::avx2 {

// `Dot` is how 4 bytes are multiplied and added (dot.h).
template <class Dot>
struct Products {
  using Tile = vector::PanelTile;
  static constexpr int kTileRows = 4;

  static int rows_of_tile(int rows_left) { return rows_left < kTileRows ? rows_left : kTileRows; }

  template <bool kHasScales>
  static void multiply(const Tile& tile, int rows) {
    switch (rows) {
      case 1:
        return multiply_rows<1, kHasScales>(tile);
      case 2:
        return multiply_rows<2, kHasScales>(tile);
      case 3:
        return multiply_rows<3, kHasScales>(tile);
      default:
        return multiply_rows<kTileRows, kHasScales>(tile);
    }
  }

  static float split_scales(const uint16_t* scales, float* share) {
    const float largest = largest_magnitude(scales);
    const __m256 inverse = _mm256_set1_ps(largest > 0 ? 1.0f / largest : 0.0f);
    for (int i = 0; i < kGroup; i += 8) _mm256_storeu_ps(share + i, _mm256_mul_ps(load_f16(scales + i), inverse));
    return largest;
  }

  static int32_t round_inputs(const float* v, const float* share, int8_t* q) {
    const auto rounded = [&](int i) {
      return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(v + i), _mm256_loadu_ps(share + i)));
    };
    const __m256i first = _mm256_packs_epi32(rounded(0), rounded(8));
    const __m256i second = _mm256_packs_epi32(rounded(16), rounded(24));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packing works within halves of 16 bytes
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(first, second), order);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), bytes);
    const __m256i shifted = _mm256_xor_si256(bytes, _mm256_set1_epi8(-128));  // q + 128, unsigned
    const __m256i sums = _mm256_sad_epu8(shifted, _mm256_setzero_si256());
    const __m128i two = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_unpackhi_epi64(two, two))) - 128 * kGroup;
  }

 private:
  template <int kRows, bool kHasScales>
  static void multiply_rows(const Tile& tile) {
    __m256 sum[kRows][2];
    for (int row = 0; row < kRows; ++row) {
      const float* y = tile.y + row * tile.y_stride;
      sum[row][0] = tile.is_first ? _mm256_setzero_ps() : _mm256_loadu_ps(y);
      sum[row][1] = tile.is_first ? _mm256_setzero_ps() : _mm256_loadu_ps(y + 8);
    }
    const uint8_t* nibbles = tile.nibbles;
    const uint16_t* scales = tile.scales;
    const uint8_t* x = tile.x;
    for (int group = 0; group < tile.groups; ++group) {
      if (kRows == 1) vector::prefetch_group(tile.ahead, group);
      __m256i dot[kRows][2];
      multiply_group<kRows>(nibbles, x, tile.x_stride, dot);
      for (int row = 0; row < kRows; ++row) {
        const __m256 scale = _mm256_set1_ps(block(x, tile.x_stride, row)->scale);
        for (int half = 0; half < 2; ++half) {
          const __m256 both = kHasScales ? _mm256_mul_ps(load_f16(scales + 8 * half), scale) : scale;
          sum[row][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[row][half]), both, sum[row][half]);
        }
      }
      nibbles += kGroupBytes;
      if (kHasScales) scales += kPanel;
      x += sizeof(Block);
    }
    for (int row = 0; row < kRows; ++row) {
      _mm256_storeu_ps(tile.y + row * tile.y_stride, sum[row][0]);
      _mm256_storeu_ps(tile.y + row * tile.y_stride + 8, sum[row][1]);
    }
  }

  // The integer sums of one group: dot[row] are those of outputs 0 .. 7 and 8 .. 15.
  template <int kRows>
  static void multiply_group(const uint8_t* nibbles, const uint8_t* x, size_t x_stride, __m256i (&dot)[kRows][2]) {
    const __m256i mask = _mm256_set1_epi8(15);
    for (int row = 0; row < kRows; ++row) dot[row][0] = dot[row][1] = Dot::begin(block(x, x_stride, row)->offset);
    for (int run = 0; run < 4; ++run) {
      __m256i low[2], high[2];
      for (int half = 0; half < 2; ++half) {
        const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(nibbles + run * kRun) + half);
        low[half] = _mm256_and_si256(packed, mask);
        high[half] = _mm256_and_si256(_mm256_srli_epi16(packed, 4), mask);
      }
      for (int row = 0; row < kRows; ++row) {
        const int8_t* q = block(x, x_stride, row)->q + 8 * run;
        const __m256i first = broadcast4(q);
        for (int half = 0; half < 2; ++half) dot[row][half] = Dot::add(dot[row][half], low[half], first);
        const __m256i second = broadcast4(q + 4);
        for (int half = 0; half < 2; ++half) dot[row][half] = Dot::add(dot[row][half], high[half], second);
      }
    }
    for (int row = 0; row < kRows; ++row)
      for (int half = 0; half < 2; ++half) dot[row][half] = Dot::end(dot[row][half], block(x, x_stride, row)->offset);
  }

  static const Block* block(const uint8_t* x, size_t x_stride, int row) {
    return reinterpret_cast<const Block*>(x + row * x_stride);
  }
  static __m256i broadcast4(const int8_t* inputs) {
    int32_t four;
    __builtin_memcpy(&four, inputs, 4);
    return _mm256_set1_epi32(four);
  }
  static __m256 load_f16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  // fp16 without its sign is ordered as an integer is.
  static float largest_magnitude(const uint16_t* scales) {
    const __m256i* halves = reinterpret_cast<const __m256i*>(scales);
    const __m256i magnitude = _mm256_set1_epi16(0x7fff);
    const __m256i pairs = _mm256_max_epu16(_mm256_and_si256(_mm256_loadu_si256(halves), magnitude),
                                           _mm256_and_si256(_mm256_loadu_si256(halves + 1), magnitude));
    const __m128i eight = _mm_max_epu16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    const __m128i ones = _mm_set1_epi16(-1);  // there is a minimum of 8 lanes, but no maximum
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_xor_si128(_mm_minpos_epu16(_mm_xor_si128(eight, ones)), ones)));
  }
};

}  // namespace mobilemoe::avx2
