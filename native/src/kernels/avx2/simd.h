// The 16-lane vectors of kernels/vector/*.h on AVX2, as two halves. `Dot` is how 4 bytes are multiplied and added
// (dot.h): it makes the code of AVX2 and of AVX-VNNI different types, which the linker must not merge.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace mobilemoe::avx2 {

struct Floats {
  __m256 low, high;
};

struct Ints {
  __m256i low, high;
};

struct BitPlaces {  // of[bits]: the places of those that are 1, a byte each
  constexpr BitPlaces() : of() {
    for (int bits = 0; bits < 256; ++bits) {
      for (int i = 0, place = 0; i < 8; ++i) {
        if ((bits >> i & 1) != 0) of[bits][place++] = static_cast<uint8_t>(i);
      }
    }
  }
  uint8_t of[256][8];
};

template <class Dot>
struct Simd {
  using F = Floats;  // 16 floats
  using I = Ints;    // 16 int32, or 64 bytes: 4 for each lane

  static F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static F set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static void store(float* p, F x) {
    _mm256_storeu_ps(p, x.low);
    _mm256_storeu_ps(p + 8, x.high);
  }
  static F load_f16(const uint16_t* p) {
    const __m128i* halves = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
  }
  static void store_f16(uint16_t* p, F x) {
    __m128i* halves = reinterpret_cast<__m128i*>(p);
    _mm_storeu_si128(halves, _mm256_cvtps_ph(x.low, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(halves + 1, _mm256_cvtps_ph(x.high, _MM_FROUND_TO_NEAREST_INT));
  }
  static F add(F a, F b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
  static F sub(F a, F b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
  static F mul(F a, F b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
  static F div(F a, F b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
  static F fma(F a, F b, F c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  static F max(F a, F b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
  static F larger(F x, F best) { return max(x, best); }
  static F min(F a, F b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
  static F abs(F a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
  }
  static F where(F x, F low, F a) {
    return {_mm256_and_ps(_mm256_cmp_ps(x.low, low.low, _CMP_GE_OQ), a.low),
            _mm256_and_ps(_mm256_cmp_ps(x.high, low.high, _CMP_GE_OQ), a.high)};
  }
  static uint32_t between(F x, F low, F high) {
    const auto bits = [](__m256 half, __m256 from, __m256 to) {
      const __m256 is_one = _mm256_and_ps(_mm256_cmp_ps(half, from, _CMP_GE_OQ), _mm256_cmp_ps(half, to, _CMP_LE_OQ));
      return static_cast<uint32_t>(_mm256_movemask_ps(is_one));
    };
    return bits(x.low, low.low, high.low) | bits(x.high, low.high, high.high) << 8;
  }
  static void store_places(uint32_t bits, int first, int* to) {
    static constexpr BitPlaces kPlaces;
    const auto store_half = [&](uint32_t half, int begin) {
      const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kPlaces.of[half]));
      const __m256i places = _mm256_add_epi32(_mm256_cvtepu8_epi32(bytes), _mm256_set1_epi32(begin));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), places);
      to += __builtin_popcount(half);
    };
    store_half(bits & 255, first);
    store_half(bits >> 8, first + 8);
  }
  static float first(F a) { return _mm256_cvtss_f32(a.low); }

  static I zero_i() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static I set_i(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
  static I load_i(const void* p) {
    const __m256i* halves = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
  }
  static void store_i(void* p, I x) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), x.low);
    _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, x.high);
  }
  static I add_i(I a, I b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
  static I and_i(I a, I b) { return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)}; }
  static I shift_left(I a, int bits) { return {_mm256_slli_epi32(a.low, bits), _mm256_slli_epi32(a.high, bits)}; }
  static I shift_right(I a, int bits) { return {_mm256_srli_epi32(a.low, bits), _mm256_srli_epi32(a.high, bits)}; }
  static F to_float(I a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
  static I round(F a) { return {_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high)}; }
  static F as_float(I a) { return {_mm256_castsi256_ps(a.low), _mm256_castsi256_ps(a.high)}; }
  static void store_int8(int8_t* p, I a) {  // the low byte of each lane
    const I bytes = and_i(a, set_i(255));
    const __m256i pairs = _mm256_packus_epi32(bytes.low, bytes.high);  // 0-3 8-11 | 4-7 12-15
    const __m256i sorted = _mm256_permute4x64_epi64(pairs, 0xd8);
    const __m128i packed = _mm_packus_epi16(_mm256_castsi256_si128(sorted), _mm256_extracti128_si256(sorted, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
  }

  static I broadcast(const void* four_bytes) {
    int32_t x;
    __builtin_memcpy(&x, four_bytes, 4);
    return set_i(x);
  }
  static I dot(I acc, I small, I wide) {
    return {Dot::four(acc.low, small.low, wide.low), Dot::four(acc.high, small.high, wide.high)};
  }
  static constexpr bool kShiftedQuery = Dot::kShiftedQuery;
  static uint8_t query_byte(int8_t q) { return static_cast<uint8_t>(kShiftedQuery ? q + 128 : q); }
  static I dot_query(I acc, I query, I wide) {
    return {Dot::four_query(acc.low, query.low, wide.low), Dot::four_query(acc.high, query.high, wide.high)};
  }
};

}  // namespace mobilemoe::avx2
