// INT4 x INT8 products on AMX: tiles make the integer sums of a group, and AVX-512 scales and adds them as in
// vector/tiles.h, so that both give the same bits. Tiles is HardwareTiles, or an emulation of it in tests.
//
// A block is up to 12 rows by a pair of panels. Its 24 float accumulators stay in registers, because reloading them for
// each group would cost more than the products.
//
// An estimate for one group of such a block on Sapphire Rapids, counted from the instructions and not measured, in
// cycles: 36 for conversions, products and additions (2 a cycle), 33 for loads, 24 for TDPBSSD and 24 for stores, which
// overlap, and 20 for unpacking, which all blocks share. AVX-512 alone needs about 150, with 11 instructions for each
// row and panel. That makes AMX 3 to 3.5 times as fast at 60 rows and 2.5 times at 12. For Axis::out it is 36 to round
// the inputs, then 33, against 190: 2.5 times. What was measured is in LOG.md (2026-11-26).
#pragma once

#include "kernels/amx/slice.h"
#include "kernels/amx/tiles.h"
#include "kernels/vector/unroll.h"

namespace mobilemoe::amx {

constexpr int kRows = 12;       // of a block
constexpr int kFewestRows = 8;  // with fewer rows, unpacking the weights costs more than the tiles save
constexpr int kAhead = 3;       // groups that the tiles are ahead: a tile's sums cannot be loaded until they are in L1
constexpr int kRing = 4;        // groups whose sums are kept

using Sums = int32_t[2][kRows][kPanel];  // of one group, by panel

// Tiles 0 and 1, 2 and 3 take the sums of even and odd groups, 4 and 5 their inputs, 6 and 7 the weights of two panels.
template <class Tiles>
void configure(int rows) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.rows[tile] = static_cast<uint8_t>(tile < 6 ? rows : 8);
    config.row_bytes[tile] = tile == 4 || tile == 5 ? kGroup : kRun;
  }
  Tiles::configure(config);
}

// Walks through the groups of a block; next() brings the sums of one group into the ring.
template <class Tiles>
struct Multiplier {
  const uint8_t* inputs;  // of the first row
  size_t row_step;
  size_t group_step;
  const Slice* slice;
  unsigned groups;
  Sums* ring;
  unsigned group = 0;

  void next() {
    if (group == groups) return;
    if (group % 2 == 0) {
      multiply<0>();
    } else {
      multiply<1>();
    }
    inputs += group_step;
    ++group;
  }

  template <int odd>
  void multiply() {
    constexpr int c = 2 * odd, a = 4 + odd;
    const auto& weights = slice->weights[group];
    auto& sums = ring[group % kRing];
    Tiles::template zero<c>();
    Tiles::template zero<c + 1>();
    Tiles::template load<a>(inputs, row_step);
    Tiles::template load<6>(weights[0], kRun);
    Tiles::template dot<c, a, 6>();
    Tiles::template load<7>(weights[1], kRun);
    Tiles::template dot<c + 1, a, 7>();
    Tiles::template store<c>(sums[0], sizeof *sums[0]);
    Tiles::template store<c + 1>(sums[1], sizeof *sums[1]);
  }
};

// The slice to prefetch into L2 meanwhile; a block prefetches the runs first, first + step, ...
struct Prefetch {
  const uint8_t* nibbles[2];
  int first, step;

  void group(size_t group) const {
    for (int run = first; run < 4; run += step) {
      const size_t at = group * kGroupBytes + size_t{kRun} * run;
      for (const uint8_t* side : nibbles) _mm_prefetch(reinterpret_cast<const char*>(side + at), _MM_HINT_T1);
    }
  }
};

struct Output {
  float* y;
  size_t stride;
  int second;   // offset of the second panel: 16, or 0 if it is the first again
  bool is_sum;  // y holds the sum of the groups before
};

// Computes R rows of a block. Its tiles begin with `skip` rows that are not needed.
template <int R, Axis axis, class Tiles, class Rows>
inline void block(Multiplier<Tiles> tiles, int skip, Rows rows, const Prefetch& prefetch, const Output& out) {
  __m512 acc[2][R];
  vector::unroll<R>([&](auto r) {
    const float* y = out.y + r * out.stride;
    acc[0][r] = out.is_sum ? _mm512_loadu_ps(y) : _mm512_setzero_ps();
    acc[1][r] = out.is_sum ? _mm512_loadu_ps(y + out.second) : _mm512_setzero_ps();
  });
  for (int i = 0; i < kAhead; ++i) tiles.next();
  for (unsigned group = 0; group < tiles.groups; ++group) {
    tiles.next();
    prefetch.group(group);
    const int32_t(*sums)[kPanel] = tiles.ring[group % kRing][0] + skip;
    const float* scales = tiles.slice->scales[group];
    __m512 by_output[2] = {_mm512_load_ps(scales), _mm512_load_ps(scales + kPanel)};
    vector::unroll<R>([&](auto r) {
      const __m512 by_row = _mm512_set1_ps(rows.scale(r));
      for (int side = 0; side < 2; ++side) {
        const __m512 scale = axis == Axis::in ? _mm512_mul_ps(by_output[side], by_row) : by_row;
        const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums[side * kRows + r]));
        acc[side][r] = _mm512_fmadd_ps(sum, scale, acc[side][r]);
      }
    });
    rows.next_group();
  }
  vector::unroll<R>([&](auto r) {
    float* y = out.y + r * out.stride;
    _mm512_storeu_ps(y, acc[0][r]);
    _mm512_storeu_ps(y + out.second, acc[1][r]);
  });
}

}  // namespace mobilemoe::amx
