// The arithmetic of vector/tiles.h on AVX-512 with VNNI.
#pragma once

#include "kernels/avx512/simd.h"
#include "kernels/vector/tiles.h"

namespace mobilemoe::avx512 {

struct Products {
  using S = Simd;
  static constexpr int kSums = 12, kRows = 6;  // 12 integer and 12 float sums, 4 of weights, one of inputs, a mask

  static Simd::I begin(int32_t offset) { return Simd::set_i(offset); }
  static Simd::I add(Simd::I sum, Simd::I nibbles, Simd::I inputs) { return Simd::dot(sum, nibbles, inputs); }
  static Simd::I end(Simd::I sum, int32_t) { return sum; }

  // Without their sign bits, fp16 numbers have the same order as integers.
  static float largest_magnitude(const uint16_t* scales) {
    const __m512i magnitudes = _mm512_and_si512(_mm512_loadu_si512(scales), _mm512_set1_epi16(0x7fff));
    const __m256i sixteen =
        _mm256_max_epu16(_mm512_castsi512_si256(magnitudes), _mm512_extracti64x4_epi64(magnitudes, 1));
    const __m128i eight = _mm_max_epu16(_mm256_castsi256_si128(sixteen), _mm256_extracti128_si256(sixteen, 1));
    const __m128i ones = _mm_set1_epi16(-1);  // inverts: there is an instruction for the minimum, none for the maximum
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_xor_si128(_mm_minpos_epu16(_mm_xor_si128(eight, ones)), ones)));
  }

  static void round(const ScaledBlock* x, const vector::ScaleSlice& scales, int groups, Block* out) {
    int group = 0;
    for (; group + 2 <= groups; group += 2) {
      round_groups<2>(x + group, scales.share[group], scales.largest + group, out + group);
    }
    if (group < groups) round_groups<1>(x + group, scales.share[group], scales.largest + group, out + group);
  }

 private:
  template <int count>  // 1 or 2
  static void round_groups(const ScaledBlock* x, const float* share, const float* largest, Block* out) {
    __m512i q[4];
    for (int i = 0; i < 4; ++i) {
      const int group = i / 2 % count;
      const __m512 v = _mm512_loadu_ps(x[group].v + i % 2 * 16);
      q[i] = _mm512_cvtps_epi32(_mm512_mul_ps(v, _mm512_loadu_ps(share + group * kGroup + i % 2 * 16)));
    }
    // The pack instructions put the i-th 4 of the 64 inputs at place 4 (i % 4) + i / 4.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i packed = _mm512_packs_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
    const __m512i bytes = _mm512_permutexvar_epi32(order, packed);
    // Sums of bytes + 128. Of the eight 64-bit sums, those at even places belong to the first group.
    const __m512i sums = _mm512_sad_epu8(_mm512_xor_si512(packed, _mm512_set1_epi8(-128)), _mm512_setzero_si512());
    const __m256i halves = _mm256_add_epi64(_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64(sums, 1));
    const __m128i both = _mm_add_epi64(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
    const int32_t first_sum = _mm_cvtsi128_si32(both), second_sum = _mm_extract_epi32(both, 2);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[0].q), _mm512_castsi512_si256(bytes));
    out[0].offset = 8 * (128 * kGroup - first_sum);
    out[0].scale = largest[0] * x[0].scale;
    if (count == 1) return;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[1].q), _mm512_extracti64x4_epi64(bytes, 1));
    out[1].offset = 8 * (128 * kGroup - second_sum);
    out[1].scale = largest[1] * x[1].scale;
  }
};

struct Peak {
  using V = __m512i;
  static constexpr int kProducts = 64;
  static constexpr int kChains = 12;
  static V fill(int8_t x) { return _mm512_set1_epi8(x); }
  static V dot(V acc, V a, V b) { return _mm512_dpbusd_epi32(acc, a, b); }
  static void hide(V& v) { __asm__ volatile("" : "+v"(v)); }
};

}  // namespace mobilemoe::avx512
