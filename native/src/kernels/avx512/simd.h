// The 16-lane vectors of kernels/vector/*.h on AVX-512 with VNNI. Every instruction set has a struct of the same shape;
// each operation rounds once, as IEEE 754 says, so that all of them give the same bits.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace mobilemoe::avx512 {

struct Simd {
  using F = __m512;  // 16 floats
  // 16 int32, or 64 bytes: 4 for each lane. With __m512i (8 int64) GCC 12 copies every accumulator of a dot product.
  using I = int __attribute__((vector_size(64)));

  static F zero() { return _mm512_setzero_ps(); }
  static F set(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F load_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void store_f16(uint16_t* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }  // a b + c, rounded once
  static F max(F a, F b) { return _mm512_max_ps(a, b); }            // b where either is NaN
  static F larger(F x, F best) { return max(x, best); }             // `best` where x is NaN
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F abs(F a) { return _mm512_abs_ps(a); }
  static F where(F x, F low, F a) {  // a where x >= low, otherwise 0
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, low, _CMP_GE_OQ), a);
  }
  static uint32_t between(F x, F low, F high) {  // a bit for each lane: low <= x <= high
    return _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(x, low, _CMP_GE_OQ), x, high, _CMP_LE_OQ);
  }
  // Writes first + i for each bit i of 16 that is 1; up to 16 ints in all, of which the others are of no use.
  static void store_places(uint32_t bits, int first, int* to) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i places = _mm512_add_epi32(lanes, _mm512_set1_epi32(first));
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), places));
  }
  static float first(F a) { return _mm512_cvtss_f32(a); }

  static I zero_i() { return (I)_mm512_setzero_si512(); }
  static I set_i(int32_t x) { return (I)_mm512_set1_epi32(x); }
  static I load_i(const void* p) { return (I)_mm512_loadu_si512(p); }
  static void store_i(void* p, I x) { _mm512_storeu_si512(p, (__m512i)x); }
  static I add_i(I a, I b) { return (I)_mm512_add_epi32((__m512i)a, (__m512i)b); }
  static I and_i(I a, I b) { return (I)_mm512_and_si512((__m512i)a, (__m512i)b); }
  static I shift_left(I a, int bits) { return (I)_mm512_slli_epi32((__m512i)a, static_cast<unsigned>(bits)); }
  // Shifts zeros in.
  static I shift_right(I a, int bits) { return (I)_mm512_srli_epi32((__m512i)a, static_cast<unsigned>(bits)); }
  static F to_float(I a) { return _mm512_cvtepi32_ps((__m512i)a); }
  static I round(F a) { return (I)_mm512_cvtps_epi32(a); }  // to nearest, ties to even
  static F as_float(I a) { return _mm512_castsi512_ps((__m512i)a); }
  static void store_int8(int8_t* p, I a) {  // the low byte of each lane
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8((__m512i)a));
  }

  static I broadcast(const void* four_bytes) {
    int32_t x;
    __builtin_memcpy(&x, four_bytes, 4);
    return (I)_mm512_set1_epi32(x);
  }
  // acc + the sum of 4 products in each lane; `small` bytes are 0 .. 127, `wide` ones -127 .. 127. Exact.
  static I dot(I acc, I small, I wide) { return (I)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)small, (__m512i)wide); }
  // The same for two signed operands. Here the first must have been stored with `query_byte`, and the caller adds
  // -128 * sum(wide), which cancels the shift.
  static constexpr bool kShiftedQuery = true;
  static uint8_t query_byte(int8_t q) { return static_cast<uint8_t>(q + 128); }
  static I dot_query(I acc, I query, I wide) {
    return (I)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)query, (__m512i)wide);
  }
};

}  // namespace mobilemoe::avx512
