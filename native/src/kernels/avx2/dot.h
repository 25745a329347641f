// Sums of int8 products in registers of 8 int32. Without AVX-VNNI the products are first added as int16.
//
// The steps of a group of 32 inputs, 4 inputs of 8 outputs at a time: begin, 8 times add, end. All sums are exact.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace mobilemoe::avx2 {

struct Maddubs {
  static __m256i begin(int32_t) { return _mm256_setzero_si256(); }
  // A sum of two products of a nibble and an int8 is at most 2 x 15 x 127, so 8 of them fit into an int16.
  static __m256i add(__m256i acc, __m256i nibbles, __m256i inputs) {
    acc = _mm256_add_epi16(acc, _mm256_maddubs_epi16(nibbles, inputs));
    __asm__("" : "+x"(acc));  // or the compiler reorders the sums and stores all products on the stack
    return acc;
  }
  static __m256i end(__m256i acc, int32_t offset) { return _mm256_add_epi32(widen(acc), _mm256_set1_epi32(offset)); }

  // acc + the sum of 4 products in each lane; `small` bytes are 0 .. 127, `wide` ones -127 .. 127.
  static __m256i four(__m256i acc, __m256i small, __m256i wide) {
    return _mm256_add_epi32(acc, widen(_mm256_maddubs_epi16(small, wide)));
  }
  static constexpr bool kShiftedQuery = false;
  static __m256i four_query(__m256i acc, __m256i query, __m256i wide) {
    return four(acc, _mm256_abs_epi8(query), _mm256_sign_epi8(wide, query));
  }

 private:
  static __m256i widen(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }
};

#if defined(__AVXVNNI__)

struct Vnni {
  static __m256i begin(int32_t offset) { return _mm256_set1_epi32(offset); }
  static __m256i add(__m256i acc, __m256i nibbles, __m256i inputs) {
    return _mm256_dpbusd_avx_epi32(acc, nibbles, inputs);
  }
  static __m256i end(__m256i acc, int32_t) { return acc; }

  static __m256i four(__m256i acc, __m256i small, __m256i wide) { return _mm256_dpbusd_avx_epi32(acc, small, wide); }
  static constexpr bool kShiftedQuery = true;
  static __m256i four_query(__m256i acc, __m256i query, __m256i wide) { return four(acc, query, wide); }
};

#endif

template <class Dot>
struct Peak {
  using V = __m256i;
  static constexpr int kProducts = 32;
  static constexpr int kChains = 9;  // of ten GCC stores some on the stack in every round
  static V fill(int8_t x) { return _mm256_set1_epi8(x); }
  static V dot(V acc, V a, V b) { return Dot::add(acc, a, b); }
  static void hide(V& v) { __asm__ volatile("" : "+x"(v)); }
};

}  // namespace mobilemoe::avx2
