// INT4 x INT8 products for NEON; those of x86 are in tiles.h. A panel is multiplied by a tile of rows, so that nibbles
// are split once for all rows of the tile. The arithmetic of an instruction set is a struct P:
//   P::S                                          its Simd struct
//   P::rows_of_tile(rows_left)                    how many rows the next tile takes, at most P::kTileRows
//   P::multiply_group(nibbles, x, x_stride, dot)  dot[row] = a panel's group times the Block of each row, exactly
//   P::largest_magnitude(scales)                  of 32 fp16 scales
//   P::round_inputs(v, share, q)                  q = round(v * share) of 32 inputs; returns their sum
#pragma once

#include "kernels/kernels.h"
#include "kernels/vector/unroll.h"

namespace mobilemoe::vector {

// What one tile reads and writes: a panel's groups, rows of Blocks, rows of 16 outputs.
struct PanelTile {
  const uint8_t* nibbles;
  const uint16_t* scales;  // of the outputs if kHasScales; otherwise null, as the Blocks' scales include them
  int groups;
  const uint8_t* x;
  size_t x_stride;
  float* y;
  size_t y_stride;
  bool is_first;         // otherwise the sums are added to those in y
  const uint8_t* ahead;  // a later part of the matrix, which `prefetch_group` brings into the cache
};

// The bytes of a panel for each group, scales included. With a single row the memory's speed is the limit, so what is
// read 16 KiB later is prefetched: into L2, because L1 can wait for too few lines at a time, and with the scales,
// because a stream without gaps is the fastest.
constexpr int kGroupStep = kGroupBytes + 2 * kPanel;
constexpr int kAhead = 16384;

inline __attribute__((always_inline)) void prefetch(const void* at) { __builtin_prefetch(at, 0, 2); }

inline __attribute__((always_inline)) const uint8_t* ahead_of(const Matrix& w, int panel, int group) {
  return w.data + size_t{kGroupStep} * panel * w.groups() + size_t{kGroupStep} * group + kAhead;
}

inline __attribute__((always_inline)) void prefetch_group(const uint8_t* ahead, int group) {
  const uint8_t* at = ahead + size_t{kGroupStep} * group;
  for (int line = 0; line < kGroupStep; line += 64) prefetch(at + line);
}

inline __attribute__((always_inline)) const Block* block_of(const uint8_t* x, size_t x_stride, int row) {
  return reinterpret_cast<const Block*>(x + row * x_stride);
}

// One panel times the rows of a tile.
template <class P, bool kHasScales, int kRows>
inline void multiply_rows(const PanelTile& tile) {
  using S = typename P::S;
  const auto output = [&](int row) { return tile.y + row * tile.y_stride; };
  typename S::F sum[kRows];
  unroll<kRows>([&](auto row) { sum[row] = tile.is_first ? S::zero() : S::load(output(row)); });
  const uint8_t* nibbles = tile.nibbles;
  const uint16_t* scales = tile.scales;
  const uint8_t* x = tile.x;
  for (int group = 0; group < tile.groups; ++group) {
    if (kRows == 1) prefetch_group(tile.ahead, group);
    typename S::I dot[kRows];
    P::multiply_group(nibbles, x, tile.x_stride, dot);
    unroll<kRows>([&](auto row) {
      const typename S::F scale = S::set(block_of(x, tile.x_stride, row)->scale);
      sum[row] = S::fma(S::to_float(dot[row]), kHasScales ? S::mul(S::load_f16(scales), scale) : scale, sum[row]);
    });
    nibbles += kGroupBytes;
    if (kHasScales) scales += kPanel;
    x += sizeof(Block);
  }
  unroll<kRows>([&](auto row) { S::store(output(row), sum[row]); });
}

// The same for a number of rows that P::rows_of_tile gave.
template <class P, bool kHasScales, int kRows = P::kTileRows>
inline void multiply(const PanelTile& tile, int rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return multiply<P, kHasScales, P::rows_of_tile(kRows - 1)>(tile, rows);
  }
  multiply_rows<P, kHasScales, kRows>(tile);
}

template <class P>
void matmul_blocks(const Matrix& w, int begin, int end, const void* x, size_t x_stride, int rows, float* y,
                   size_t y_stride) {
  const auto* in = static_cast<const uint8_t*>(x);
  for (int panel = begin; panel < end; ++panel, y += kPanel) {
    PanelTile tile = {w.nibbles(panel),     w.scales(panel), w.groups(), in, x_stride, y, y_stride, true,
                      ahead_of(w, panel, 0)};
    for (int left = rows; left > 0;) {
      const int taken = P::rows_of_tile(left);
      multiply<P, true>(tile, taken);
      tile.x += taken * x_stride;
      tile.y += taken * y_stride;
      left -= taken;
    }
  }
}

constexpr int kChunk = 32;  // groups whose inputs, rounded for a pair of panels, are on the stack at a time

// The scales of a chunk, and a tile's inputs multiplied by them.
template <class P>
struct Chunk {
  float share[kChunk][kGroup];  // scales divided by the largest of their group
  float largest[kChunk];
  Block blocks[P::kTileRows][kChunk];

  void set_scales(const uint16_t* scales, int groups) {
    using S = typename P::S;
    for (int group = 0; group < groups; ++group, scales += kGroup) {
      largest[group] = P::largest_magnitude(scales);
      const typename S::F inverse = S::set(largest[group] > 0 ? 1.0f / largest[group] : 0.0f);
      for (int i = 0; i < kGroup; i += 16) S::store(share[group] + i, S::mul(S::load_f16(scales + i), inverse));
    }
  }
  void round_row(const ScaledBlock* in, int groups, Block* out) const {
    for (int group = 0; group < groups; ++group) {
      out[group].offset = -8 * P::round_inputs(in[group].v, share[group], out[group].q);
      out[group].scale = largest[group] * in[group].scale;
    }
  }
};

// The scales of a pair of panels follow its nibbles, but are needed first.
inline __attribute__((always_inline)) void prefetch_scales(const Matrix& w, int panel) {
  const auto* scales = reinterpret_cast<const uint8_t*>(w.scales(panel));
  for (int group = 0; group < w.groups(); ++group) prefetch(scales + group * 2 * kGroup);
}

template <class P>
void matmul_scaled(const Matrix& w, int begin, int end, const void* x, size_t x_stride, int rows, float* y,
                   size_t y_stride) {
  Chunk<P> chunk;
  for (int panel = begin; panel < end; panel += 2, y += 2 * kPanel) {
    if (panel + 2 < end) prefetch_scales(w, panel + 2);
    for (int first = 0; first < w.groups(); first += kChunk) {
      const int groups = w.groups() - first < kChunk ? w.groups() - first : kChunk;
      chunk.set_scales(w.scales(panel) + first * kGroup, groups);
      for (int row = 0, taken; row < rows; row += taken) {
        taken = P::rows_of_tile(rows - row);
        for (int i = 0; i < taken; ++i) {
          const uint8_t* in = static_cast<const uint8_t*>(x) + (row + i) * x_stride;
          chunk.round_row(reinterpret_cast<const ScaledBlock*>(in) + first, groups, chunk.blocks[i]);
        }
        for (int side = 0; side < 2; ++side) {
          const uint8_t* nibbles = w.nibbles(panel + side) + size_t{kGroupBytes} * first;
          float* out = y + row * y_stride + side * kPanel;
          multiply<P, false>({nibbles, nullptr, groups, reinterpret_cast<const uint8_t*>(chunk.blocks),
                              sizeof chunk.blocks[0], out, y_stride, first == 0, ahead_of(w, panel + side, first)},
                             taken);
        }
      }
    }
  }
}

}  // namespace mobilemoe::vector
