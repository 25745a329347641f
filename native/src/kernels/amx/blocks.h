// A matrix product on AMX: the loops over pairs of panels, slices of groups and blocks of rows.
#pragma once

#include "kernels/amx/matmul.h"

namespace mobilemoe::amx {

// The rows of one block, at the groups of one slice.
struct BlockInput {
  const uint8_t* x;  // its first row that counts
  size_t stride;
  int groups;
  int rows, skip;  // rows of its tiles, and how many of them stand before x
};

// For Axis::out: the rows of a block times the weights' scales, rounded to int8.
struct RoundedRows {
  alignas(64) int8_t q[kRows][kSliceGroups * kGroup];
  float scale[kSliceGroups][kRows];
};

struct RoundedScales {
  const float* scales;
  float scale(int r) const { return scales[r]; }
  void next_group() { scales += kRows; }
};

// Two groups at a time. The pack instructions put the i-th 4 of the 64 inputs at place 4 (i % 4) + i / 4; the
// permutation restores their order.
inline void round_rows(const BlockInput& in, const Slice& slice, RoundedRows& out) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const uint8_t* x = in.x - in.skip * in.stride;
  for (int group = 0; group < in.groups; group += 2) {
    const int other = group + 1 < in.groups ? 1 : 0;
    for (int r = 0; r < in.rows; ++r) {
      const auto* row = reinterpret_cast<const ScaledBlock*>(x + r * in.stride) + group;
      __m512i q[4];
      for (int i = 0; i < 4; ++i) {
        const __m512 v = _mm512_loadu_ps(row[i < 2 ? 0 : other].v + i % 2 * 16);
        q[i] = _mm512_cvtps_epi32(_mm512_mul_ps(v, _mm512_load_ps(slice.scales[group + i / 2] + i % 2 * 16)));
      }
      const __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
      _mm512_store_si512(out.q[r] + group * kGroup, _mm512_permutexvar_epi32(order, bytes));
      out.scale[group][r] = slice.largest[group] * row[0].scale;
      out.scale[group + 1][r] = slice.largest[group + 1] * row[other].scale;
    }
  }
}

template <class Tiles, int R, Axis axis>
void block_of(const BlockInput& in, const Slice& slice, const Prefetch& prefetch, const Output& out) {
  alignas(64) Sums ring[kRing];
  const size_t skipped = in.skip * in.stride;
  if constexpr (axis == Axis::in) {
    const Multiplier<Tiles> tiles{
        in.x - skipped, in.stride, sizeof(Block), &slice, static_cast<unsigned>(in.groups), ring};
    block<R, axis>(tiles, in.skip, vector::BlockRows<R>(in.x, in.stride), prefetch, out);
  } else {
    RoundedRows rounded;
    round_rows(in, slice, rounded);
    const auto* q = reinterpret_cast<const uint8_t*>(rounded.q);
    const Multiplier<Tiles> tiles{q, sizeof *rounded.q, kGroup, &slice, static_cast<unsigned>(in.groups), ring};
    block<R, axis>(tiles, in.skip, RoundedScales{rounded.scale[0] + in.skip}, prefetch, out);
  }
}

// Rows are distributed evenly over the blocks, so that with 8 rows or more no block has fewer than 6.
constexpr int kSmallestBlock = 6;
using BlockFunction = void (*)(const BlockInput&, const Slice&, const Prefetch&, const Output&);
template <class Tiles, Axis axis>
constexpr BlockFunction kBlocks[] = {block_of<Tiles, 6, axis>, block_of<Tiles, 7, axis>,  block_of<Tiles, 8, axis>,
                                     block_of<Tiles, 9, axis>, block_of<Tiles, 10, axis>, block_of<Tiles, 11, axis>,
                                     block_of<Tiles, 12, axis>};

// Tiles are configured and released in each call: other libraries in this thread (PyTorch) have their own shapes, and
// a thread whose tiles are in use has 8 KiB more to save whenever it is switched out.
template <class Tiles, Axis axis>
void matmul(const Matrix& w, int begin, int end, const void* x, size_t x_stride, int rows, float* y, size_t y_stride) {
  constexpr size_t group_bytes = axis == Axis::in ? sizeof(Block) : sizeof(ScaledBlock);
  const int blocks = divide_up(rows, kRows), height = divide_up(rows, blocks);
  configure<Tiles>(height);
  Slice slice;
  for (int panel = begin; panel < end; panel += 2, y += 2 * kPanel) {
    const int second = panel + 1 < end ? panel + 1 : panel;
    for (int from = 0; from < w.groups(); from += kSliceGroups) {
      const int to = from + kSliceGroups < w.groups() ? from + kSliceGroups : w.groups();
      fill_slice<axis>(w, panel, second, from, to - from, slice);
      const bool is_last = to == w.groups();
      const int next = is_last && panel + 3 < w.panels() ? panel + 2 : panel;
      const size_t next_from = is_last ? 0 : size_t{kGroupBytes} * to;
      Prefetch prefetch = {{w.nibbles(next) + next_from, w.nibbles(next + second - panel) + next_from}, 0, blocks};
      for (int row = 0; prefetch.first < blocks; ++prefetch.first) {
        const int count = divide_up(rows - row, blocks - prefetch.first);
        const uint8_t* in = static_cast<const uint8_t*>(x) + row * x_stride + from * group_bytes;
        const BlockInput input = {in, x_stride, to - from, height, height - count};
        kBlocks<Tiles, axis>[count - kSmallestBlock](
            input, slice, prefetch, {y + row * y_stride, y_stride, (second - panel) * kPanel, from > 0});
        row += count;
      }
    }
  }
  Tiles::release();
}

}  // namespace mobilemoe::amx
