// The arithmetic of vector/tiles.h on AVX2.
#pragma once

#include <immintrin.h>

#include "kernels/avx2/simd.h"
#include "kernels/vector/tiles.h"

namespace mobilemoe::avx2 {

// `Dot` is how 4 bytes are multiplied and added (dot.h).
template <class Dot>
struct Products {
  using S = Simd<Dot>;
  static constexpr int kSums = 4, kRows = 4;

  static Ints begin(int32_t offset) { return {Dot::begin(offset), Dot::begin(offset)}; }
  static Ints add(Ints sum, Ints nibbles, Ints inputs) {
    return {Dot::add(sum.low, nibbles.low, inputs.low), Dot::add(sum.high, nibbles.high, inputs.high)};
  }
  static Ints end(Ints sum, int32_t offset) { return {Dot::end(sum.low, offset), Dot::end(sum.high, offset)}; }

  static void round(const ScaledBlock* x, const vector::ScaleSlice& scales, int groups, Block* out) {
    for (int group = 0; group < groups; ++group) {
      const float* share = scales.share[group];
      const auto rounded = [&](int i) {
        return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x[group].v + i), _mm256_loadu_ps(share + i)));
      };
      const __m256i first = _mm256_packs_epi32(rounded(0), rounded(8));
      const __m256i second = _mm256_packs_epi32(rounded(16), rounded(24));
      const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packing works within halves of 16 bytes
      const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(first, second), order);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[group].q), bytes);
      const __m256i shifted = _mm256_xor_si256(bytes, _mm256_set1_epi8(-128));  // q + 128, unsigned
      const __m256i sums = _mm256_sad_epu8(shifted, _mm256_setzero_si256());
      const __m128i two = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
      const int32_t sum = _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_unpackhi_epi64(two, two)));
      out[group].offset = 8 * (128 * kGroup - sum);
      out[group].scale = scales.largest[group] * x[group].scale;
    }
  }

  // Without their sign bits, fp16 numbers have the same order as integers.
  static float largest_magnitude(const uint16_t* scales) {
    const __m256i* halves = reinterpret_cast<const __m256i*>(scales);
    const __m256i magnitude = _mm256_set1_epi16(0x7fff);
    const __m256i pairs = _mm256_max_epu16(_mm256_and_si256(_mm256_loadu_si256(halves), magnitude),
                                           _mm256_and_si256(_mm256_loadu_si256(halves + 1), magnitude));
    const __m128i eight = _mm_max_epu16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    const __m128i ones = _mm_set1_epi16(-1);  // inverts: there is an instruction for the minimum, none for the maximum
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_xor_si128(_mm_minpos_epu16(_mm_xor_si128(eight, ones)), ones)));
  }
};

}  // namespace mobilemoe::avx2
