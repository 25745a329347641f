// INT4 x INT8 products on AVX-512 with VNNI: nibbles are split in registers and multiplied by 4 inputs at a time.
#pragma once

#include <cstddef>

#include "kernels/avx512/simd.h"
#include "kernels/kernels.h"

namespace mobilemoe::avx512 {

constexpr int kRows = 10;             // rows of one tile: 10 integer and 10 float accumulators, 2 of weights, 1 mask
constexpr int kStreams = 8;           // panels that are multiplied by a single row at once
constexpr int kPrefetch = 16 * kRun;  // bytes to prefetch ahead; at the end of a panel they belong to the next one

struct Peak {
  using V = __m512i;
  static constexpr int kProducts = 64;
  static constexpr int kChains = 12;
  static V fill(int8_t x) { return _mm512_set1_epi8(x); }
  static V dot(V acc, V a, V b) { return _mm512_dpbusd_epi32(acc, a, b); }
  static void hide(V& v) { __asm__ volatile("" : "+v"(v)); }
};

// R rows of Blocks: the input of Axis::in. Only every third row has its own pointer; the two rows after it are
// addressed as that pointer plus one or two strides, which an instruction can do itself. A pointer for each row would
// take more registers than there are.
template <int R>
struct BlockRows {
  const uint8_t* base[(R + 2) / 3];
  size_t stride;

  BlockRows(const uint8_t* x, size_t row_stride) : stride(row_stride) {
    for (int i = 0; i < (R + 2) / 3; ++i) base[i] = x + 3 * i * row_stride;
  }
  const uint8_t* row(int r) const { return base[r / 3] + r % 3 * stride; }
  Simd::I offset(int r) const { return Simd::broadcast(row(r) + offsetof(Block, offset)); }
  Simd::F scale(int r) const { return Simd::as_float(Simd::broadcast(row(r) + offsetof(Block, scale))); }
  Simd::I four(int r, int i) const { return Simd::broadcast(row(r) + 4 * i); }
  void next_group() {
    for (const uint8_t*& p : base) p += sizeof(Block);
  }
};

// Up to 32 groups of one row of ScaledBlocks, multiplied by the scales of one pair of panels and rounded to int8. Two
// groups share 64 bytes in the order in which the pack instructions leave them: the i-th 4 inputs (i = 0 .. 15) are at
// place 4 (i % 4) + i / 4.
constexpr int kSliceGroups = 32;
struct SliceRow {
  uint8_t q[kSliceGroups * kGroup];
  int32_t offset[kSliceGroups];
  float scale[kSliceGroups];
};

struct SliceRows {
  const SliceRow* rows;
  int group = 0;

  explicit SliceRows(const SliceRow* slice) : rows(slice) {}
  Simd::I offset(int r) const { return Simd::set_i(rows[r].offset[group]); }
  Simd::F scale(int r) const { return Simd::set(rows[r].scale[group]); }
  Simd::I four(int r, int i) const {
    return Simd::broadcast(rows[r].q + group / 2 * 64 + group % 2 * 8 + 4 * (i % 4 * 4 + i / 4));
  }
  void next_group() { ++group; }
};

// P panels times R rows: `groups` groups from `begin` on, added to what y holds if `go_on`. Panels of Axis::in share
// the rows of `in`; for Axis::out every pair of panels has its own R rows, as it has its own scales.
//
// With one row, as decoding wants it, the memory's speed is the limit: many panels at once are as many streams from
// memory, and the panels that this thread is likely to take next are brought into L2. With more rows it is the
// products.
template <int P, int R, Axis axis, class Rows>
inline void multiply(const Matrix& w, int panel, int begin, int groups, Rows in, bool go_on, float* y,
                     size_t y_stride) {
  const Simd::I low_mask = Simd::set_i(0x0f0f0f0f);
  const auto row = [](int p, int r) { return axis == Axis::in ? r : p / 2 * R + r; };
  const auto output = [&](int p, int r) { return y + p * kPanel + r * y_stride; };
  const size_t ahead = R == 1 ? Matrix::bytes(2 * kStreams * kPanel, w.inputs) : kPrefetch;
  const uint8_t* nibbles[P];
  for (int p = 0; p < P; ++p) nibbles[p] = w.nibbles(panel + p) + size_t{kGroupBytes} * begin;
  Simd::F acc[P][R];
  for (int p = 0; p < P; ++p) {
    for (int r = 0; r < R; ++r) acc[p][r] = go_on ? Simd::load(output(p, r)) : Simd::zero();
  }
  for (int group = 0; group < groups; ++group) {
    Simd::I dot[P][R];
    for (int p = 0; p < P; ++p) {
      for (int r = 0; r < R; ++r) dot[p][r] = in.offset(row(p, r));
    }
    for (int run = 0; run < 4; ++run) {
      for (int p = 0; p < P; ++p) {
        const uint8_t* at = nibbles[p] + group * kGroupBytes + run * kRun;
        _mm_prefetch(reinterpret_cast<const char*>(at + ahead), R == 1 ? _MM_HINT_T1 : _MM_HINT_T0);
        const Simd::I packed = Simd::load_i(at);
        const Simd::I low = Simd::and_i(packed, low_mask);
        const Simd::I high = Simd::and_i(Simd::shift_right(packed, 4), low_mask);
        for (int r = 0; r < R; ++r) dot[p][r] = Simd::dot(dot[p][r], low, in.four(row(p, r), 2 * run));
        for (int r = 0; r < R; ++r) dot[p][r] = Simd::dot(dot[p][r], high, in.four(row(p, r), 2 * run + 1));
      }
    }
    for (int p = 0; p < P; ++p) {
      Simd::F by_output;
      if constexpr (axis == Axis::in) by_output = Simd::load_f16(w.scales(panel + p) + group * kPanel);
      for (int r = 0; r < R; ++r) {
        Simd::F scale = in.scale(row(p, r));
        if constexpr (axis == Axis::in) scale = Simd::mul(by_output, scale);
        acc[p][r] = Simd::fma(Simd::to_float(dot[p][r]), scale, acc[p][r]);
      }
    }
    in.next_group();
  }
  for (int p = 0; p < P; ++p) {
    for (int r = 0; r < R; ++r) Simd::store(output(p, r), acc[p][r]);
  }
}

// The scales of two groups of inputs (of one, if `second` is false), divided by the largest scale of their group.
struct GroupScales {
  __m512 share[4];
  float largest[2];

  GroupScales(const uint16_t* scales, bool second) {
    for (int half = 0; half < 2; ++half) {
      __m512 a = _mm512_setzero_ps(), b = a;
      if (half == 0 || second) {
        a = Simd::load_f16(scales + half * kGroup);
        b = Simd::load_f16(scales + half * kGroup + 16);
      }
      largest[half] = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
      const __m512 inverse = _mm512_set1_ps(largest[half] > 0 ? 1.0f / largest[half] : 0.0f);
      share[2 * half] = _mm512_mul_ps(a, inverse);
      share[2 * half + 1] = _mm512_mul_ps(b, inverse);
    }
  }
};

// Multiplies two groups of one row (one, if `second` is false) by the weights' scales and rounds them to int8.
inline void round_groups(const ScaledBlock* x, const GroupScales& scales, bool second, int group, SliceRow* out) {
  __m512i q[4];
  for (int i = 0; i < 4; ++i) {
    const float* v = (i < 2 ? x[0].v : x[second ? 1 : 0].v) + i % 2 * 16;
    q[i] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(v), scales.share[i]));
  }
  const __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
  _mm512_storeu_si512(out->q + group * kGroup, bytes);
  // Sums of bytes + 128. Of the eight 64-bit sums, those at even places belong to the first group.
  const __m512i sums = _mm512_sad_epu8(_mm512_xor_si512(bytes, _mm512_set1_epi8(-128)), _mm512_setzero_si512());
  const __m256i halves = _mm256_add_epi64(_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64(sums, 1));
  const __m128i both = _mm_add_epi64(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
  const int32_t first_sum = _mm_cvtsi128_si32(both), second_sum = _mm_extract_epi32(both, 2);
  out->offset[group] = 8 * (128 * kGroup - first_sum);
  out->scale[group] = scales.largest[0] * x[0].scale;
  if (!second) return;
  out->offset[group + 1] = 8 * (128 * kGroup - second_sum);
  out->scale[group + 1] = scales.largest[1] * x[1].scale;
}

}  // namespace mobilemoe::avx512
