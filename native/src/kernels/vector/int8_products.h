// INT4 x INT8 products panel by panel and tile by tile, for instruction sets whose arithmetic is a struct P:
//   P::rows_of_tile(rows_left)              how many rows the next tile takes, at most P::kTileRows
//   P::multiply<kHasScales>(tile, rows)     one panel times the rows of a tile
//   P::split_scales(scales, share)          returns the largest magnitude of 32 fp16 scales; share = scale / largest
//   P::round_inputs(v, share, q)            q = round(v * share) of 32 inputs; returns their sum
#pragma once

#include "../kernels.h"

namespace mobilemoe::vector {

// What one tile reads and writes: a panel's groups, rows of Blocks, rows of 16 outputs.
struct PanelTile {
  const uint8_t* nibbles;
  const uint16_t* scales;  // kHasScales: of the outputs; otherwise null, the Blocks' scales are complete
  int groups;
  const uint8_t* x;
  size_t x_stride;
  float* y;
  size_t y_stride;
  bool is_first;  // otherwise the sums go on from those in y
};

template <class P>
void matmul_blocks(const Matrix& w, int begin, int end, const void* x, size_t x_stride, int rows, float* y,
                   size_t y_stride) {
  for (int panel = begin; panel < end; ++panel, y += kPanel) {
    PanelTile tile = {
        w.nibbles(panel), w.scales(panel), w.groups(), static_cast<const uint8_t*>(x), x_stride, y, y_stride, true};
    for (int left = rows; left > 0;) {
      const int taken = P::rows_of_tile(left);
      P::template multiply<true>(tile, taken);
      tile.x += static_cast<size_t>(taken) * x_stride;
      tile.y += static_cast<size_t>(taken) * y_stride;
      left -= taken;
    }
  }
}

constexpr int kChunk = 32;  // groups whose inputs, rounded for a pair of panels, stand on the stack together

// The scales of a chunk, and a tile's inputs multiplied by them.
template <class P>
struct Chunk {
  float share[kChunk][kGroup];
  float largest[kChunk];
  Block blocks[P::kTileRows][kChunk];

  void set_scales(const uint16_t* scales, int groups) {
    for (int group = 0; group < groups; ++group)
      largest[group] = P::split_scales(scales + group * kGroup, share[group]);
  }
  void round_row(const ScaledBlock* in, int groups, Block* out) const {
    for (int group = 0; group < groups; ++group) {
      out[group].offset = -8 * P::round_inputs(in[group].v, share[group], out[group].q);
      out[group].scale = largest[group] * in[group].scale;
    }
  }
};

template <class P>
void matmul_scaled(const Matrix& w, int begin, int end, const void* x, size_t x_stride, int rows, float* y,
                   size_t y_stride) {
  Chunk<P> chunk;
  for (int panel = begin; panel < end; panel += 2, y += 2 * kPanel) {
    for (int first = 0; first < w.groups(); first += kChunk) {
      const int groups = w.groups() - first < kChunk ? w.groups() - first : kChunk;
      chunk.set_scales(w.scales(panel) + first * kGroup, groups);
      for (int row = 0, taken; row < rows; row += taken) {
        taken = P::rows_of_tile(rows - row);
        for (int i = 0; i < taken; ++i) {
          const uint8_t* in = static_cast<const uint8_t*>(x) + static_cast<size_t>(row + i) * x_stride;
          chunk.round_row(reinterpret_cast<const ScaledBlock*>(in) + first, groups, chunk.blocks[i]);
        }
        for (int side = 0; side < 2; ++side) {
          const uint8_t* nibbles = w.nibbles(panel + side) + static_cast<size_t>(first) * kGroupBytes;
          float* out = y + static_cast<size_t>(row) * y_stride + side * kPanel;
          P::template multiply<false>({nibbles, nullptr, groups, reinterpret_cast<const uint8_t*>(chunk.blocks),
                                       sizeof chunk.blocks[0], out, y_stride, first == 0},
                                      taken);
        }
      }
    }
  }
}

}  // namespace mobilemoe::vector
