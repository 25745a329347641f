// A tile of query rows that pass over the blocks of keys together, and their online softmax. S is the Simd struct.
#pragma once

#include "kernels/kernels.h"
#include "kernels/kv_layout.h"
#include "kernels/vector/math.h"
#include "kernels/vector/unroll.h"

namespace mobilemoe::vector {

constexpr int kTileRows = 24;  // the tile's state and one block fit into 32 KB of L1 for head_dim 64
constexpr int kUnits = kKvBlock / 16;
constexpr float kTiny = 1e-30f;  // 127 divided by at least this stays finite

// The state that all types of cache have in common. It depends on S so that no two instruction sets share its
// functions.
template <class S>
struct Tile {
  int rows;
  int begin[kTileRows], end[kTileRows];  // keys that the row sees
  // The slots of the current block that the row sees; none if first > last.
  int first[kTileRows], last[kTileRows];
  bool whole;                                      // every row sees all of the block
  alignas(64) float largest[kTileRows + 8];        // score so far
  alignas(64) float rescale[kTileRows + 8];        // e^(largest before the block - largest now)
  alignas(64) float sum[kTileRows][16];            // of e^(score - largest), by lane
  alignas(64) float p[kTileRows][kKvBlock];        // the block's scores, then e^(score - largest)
  alignas(64) float acc[kTileRows * kMaxHeadDim];  // [rows][width]

  bool sees(int row) const { return first[row] <= last[row]; }
  bool sees_all(int row) const { return first[row] == 0 && last[row] == kKvBlock - 1; }
};
static_assert((kTileRows + 8) % 16 == 0);

template <class S>
inline void start_split(int width, Tile<S>* tile) {
  for (int r = 0; r < tile->rows; ++r) S::store(tile->sum[r], S::zero());
  for (float& x : tile->largest) x = -__builtin_inff();
  for (int i = 0; i < tile->rows * width; i += 16) S::store(tile->acc + i, S::zero());
}

template <class S>
inline void start_tile(const AttendArgs& args, int row, int rows, int width, Tile<S>* tile) {
  tile->rows = rows;
  for (int r = 0; r < rows; ++r) {
    const int position = args.position[row + r];
    tile->begin[r] = args.window > 0 && position >= args.window ? position - args.window + 1 : 0;
    tile->end[r] = position + 1;
    if (args.split >= 0) {
      const int first = args.split * kKvSplit, end = first + kKvSplit;
      if (tile->begin[r] < first) tile->begin[r] = first;
      if (tile->end[r] > end) tile->end[r] = end;
    }
  }
  start_split<S>(width, tile);
}

// Determines which slots of block `block` the rows see.
template <class S>
inline void enter_block(int block, Tile<S>* tile) {
  tile->whole = true;
  for (int r = 0; r < tile->rows; ++r) {
    const int before = block * kKvBlock;
    tile->first[r] = tile->begin[r] > before ? tile->begin[r] - before : 0;
    tile->last[r] = tile->end[r] < before + kKvBlock ? tile->end[r] - before - 1 : kKvBlock - 1;
    tile->whole &= tile->sees_all(r);
  }
}

// A mask of 64 slots that are not seen, 64 that are, and 64 that are not: read at an offset, it covers either end of a
// block.
struct SeenTable {
  int32_t mask[3 * kKvBlock];
  float bias[3 * kKvBlock];
  constexpr SeenTable() : mask(), bias() {
    for (int i = 0; i < 3 * kKvBlock; ++i) {
      const bool seen = i / kKvBlock == 1;
      mask[i] = seen ? -1 : 0;
      bias[i] = seen ? 0.0f : -__builtin_inff();
    }
  }
};
static constexpr SeenTable kSeen;

// 16 values of a block from slot `slot` on, 0 where the row does not see them. Slots that are not seen may hold
// anything, NaN too, so their bits are cleared, not multiplied.
template <class S>
inline typename S::F seen_values(const Tile<S>& tile, int row, const float* values, int slot) {
  const typename S::I from = S::load_i(kSeen.mask + kKvBlock - tile.first[row] + slot);
  const typename S::I to = S::load_i(kSeen.mask + 2 * kKvBlock - 1 - tile.last[row] + slot);
  return S::as_float(S::and_i(S::load_i(values + slot), S::and_i(from, to)));
}

// The row's scores, -inf where it does not see the key.
template <class S>
inline void mask_scores(Tile<S>* tile, int row) {
  const float* from = kSeen.bias + kKvBlock - tile->first[row];
  const float* to = kSeen.bias + 2 * kKvBlock - 1 - tile->last[row];
  float* scores = tile->p[row];
  for (int slot = 0; slot < kKvBlock; slot += 16) {
    const typename S::F bias = S::add(S::load(from + slot), S::load(to + slot));
    S::store(scores + slot, S::add(seen_values<S>(*tile, row, scores, slot), bias));
  }
}

// Turns scores into e^(score - largest). Rows that see nothing of the block keep their state.
template <class S>
inline void softmax_step(Tile<S>* tile) {
  using F = typename S::F;
  alignas(64) float largest[kTileRows + 8];
  for (int r = 0; r < kTileRows + 8; r += 16) S::store(largest + r, S::load(tile->largest + r));
  for (int r = 0; r < tile->rows; ++r) {
    if (!tile->sees(r)) continue;
    float* p = tile->p[r];
    if (!tile->sees_all(r)) mask_scores<S>(tile, r);
    const F low = S::max(S::load(p), S::load(p + 16)), high = S::max(S::load(p + 32), S::load(p + 48));
    const float of_block = largest_lane<S>(S::max(low, high));
    if (of_block > largest[r]) largest[r] = of_block;
  }
  for (int r = 0; r < kTileRows + 8; r += 16) {
    S::store(tile->rescale + r, exp<S>(S::sub(S::load(tile->largest + r), S::load(largest + r))));
    S::store(tile->largest + r, S::load(largest + r));
  }
  for (int r = 0; r < tile->rows; ++r) {
    if (!tile->sees(r)) continue;
    const F most = S::set(largest[r]);
    F total = S::zero();
    unroll<kUnits>([&](auto u) {
      const F p = exp<S>(S::sub(S::load(tile->p[r] + 16 * u), most));
      S::store(tile->p[r] + 16 * u, p);
      total = S::add(total, p);
    });
    S::store(tile->sum[r], S::fma(S::load(tile->sum[r]), S::set(tile->rescale[r]), total));
  }
}

// What the rows of a tile have gathered in the splits before the current one.
template <class S>
struct Earlier {
  bool is_empty[kTileRows];
  float largest[kTileRows];
  alignas(64) float sum[kTileRows][16];
  alignas(64) float acc[kTileRows * kMaxHeadDim];
};

// Adds a later split's state to an earlier one's.
template <class S>
inline void merge_state(int width, float later_largest, const float* later_sum, const float* later_acc, float* largest,
                        float* sum, float* acc) {
  const float most = later_largest > *largest ? later_largest : *largest;
  const typename S::F keep = exp<S>(S::set(*largest - most)), take = exp<S>(S::set(later_largest - most));
  S::store(sum, S::fma(S::load(sum), keep, S::mul(S::load(later_sum), take)));
  for (int i = 0; i < width; i += 16) {
    S::store(acc + i, S::fma(S::load(acc + i), keep, S::mul(S::load(later_acc + i), take)));
  }
  *largest = most;
}

// Moves the state of the split that ends before key `end` to the earlier ones, for the rows that saw some of it.
template <class S>
inline void end_split(int width, int end, const Tile<S>& tile, Earlier<S>* earlier) {
  for (int r = 0; r < tile.rows; ++r) {
    if (tile.begin[r] >= end || tile.end[r] <= end - kKvSplit) continue;
    float* acc = earlier->acc + r * width;
    if (earlier->is_empty[r]) {
      earlier->largest[r] = tile.largest[r];
      S::store(earlier->sum[r], S::load(tile.sum[r]));
      for (int i = 0; i < width; i += 16) S::store(acc + i, S::load(tile.acc + r * width + i));
      earlier->is_empty[r] = false;
    } else {
      merge_state<S>(width, tile.largest[r], tile.sum[r], tile.acc + r * width, &earlier->largest[r], earlier->sum[r],
                     acc);
    }
  }
}

template <class S>
inline void finish_row(int head_dim, int width, const float* sums, float* acc, float* out) {
  const typename S::F total = S::set(sum<S>(S::load(sums)));
  for (int i = 0; i < width; i += 16) S::store(acc + i, S::div(S::load(acc + i), total));
  __builtin_memcpy(out, acc, head_dim * sizeof(float));
}

// Writes the states of a single split.
template <class S>
inline void store_states(const AttendArgs& args, int row, int width, const Tile<S>& tile) {
  for (int r = 0; r < tile.rows; ++r) {
    if (tile.begin[r] >= tile.end[r]) continue;
    float* out = args.out + (row + r) * args.out_stride;
    out[0] = tile.largest[r];
    __builtin_memcpy(out + 16, tile.sum[r], sizeof tile.sum[r]);
    __builtin_memcpy(out + 32, tile.acc + r * width, width * sizeof(float));
  }
}

template <class S>
void merge_splits(const float* states, int count, int head_dim, float* out) {
  const int size = split_state_size(head_dim), width = size - 32;
  float largest = states[0];
  alignas(64) float sum[16];
  alignas(64) float acc[kMaxHeadDim];
  __builtin_memcpy(sum, states + 16, sizeof sum);
  __builtin_memcpy(acc, states + 32, width * sizeof(float));
  for (int i = 1; i < count; ++i) {
    const float* later = states + i * size;
    merge_state<S>(width, later[0], later + 16, later + 32, &largest, sum, acc);
  }
  finish_row<S>(head_dim, width, sum, acc, out);
}

// step(row, Count<n>()) for groups of n = kRows rows, and one smaller group at the end.
template <int kRows, class Step>
inline void for_each_group_of(int row, int end, const Step& step) {
  for (; row + kRows <= end; row += kRows) step(row, Count<kRows>());
  if constexpr (kRows > 1) {
    if (row < end) for_each_group_of<kRows - 1>(row, end, step);
  }
}

}  // namespace mobilemoe::vector
