// Attention and its cache for the kernel tables. S is the Simd struct.
#pragma once

#include "kernels/vector/attention_float.h"
#include "kernels/vector/attention_int8.h"

namespace mobilemoe::vector {

template <class S, KvType type>
void kv_append(const float* k, const float* v, int head_dim, int slot, uint8_t* block) {
  if constexpr (type == KvType::int8) kv_append_int8<S>(k, v, head_dim, slot, block);
  if constexpr (type == KvType::f16) kv_append_float<S>(k, v, head_dim, slot, reinterpret_cast<uint16_t*>(block));
  if constexpr (type == KvType::f32) kv_append_float<S>(k, v, head_dim, slot, reinterpret_cast<float*>(block));
}

template <class S, KvType type, int kRows, int units>
inline void attend_tile(const AttendArgs& args, int row, int rows) {
  const KvInt8Layout layout = kv_int8_layout(args.head_dim);
  const size_t block_bytes = kv_block_bytes(type, args.head_dim);
  Tile<S> tile;
  start_tile<S>(args, row, rows, layout.width, &tile);
  [[maybe_unused]] Int8Rows side;
  if constexpr (type == KvType::int8) start_queries<S>(args, row, rows, layout.width, &side);

  Earlier<S> earlier;
  for (int r = 0; r < rows; ++r) earlier.is_empty[r] = true;

  int begin = INT32_MAX, end = 0;
  for (int r = 0; r < rows; ++r) {
    if (tile.begin[r] < begin) begin = tile.begin[r];
    if (tile.end[r] > end) end = tile.end[r];
  }
  const int first_end = (begin / kKvSplit + 1) * kKvSplit;  // of the first split
  for (int block = begin / kKvBlock; block * kKvBlock < end; ++block) {
    if (block % (kKvSplit / kKvBlock) == 0 && block * kKvBlock >= first_end) {
      end_split<S>(layout.width, block * kKvBlock, tile, &earlier);
      start_split<S>(layout.width, &tile);
    }
    enter_block<S>(block, &tile);
    const uint8_t* kv = args.kv + block * block_bytes;
    if constexpr (type == KvType::int8) int8_block<S, kRows, units>(layout, kv, &tile, &side);
    if constexpr (type == KvType::f16) {
      float_block<S, uint16_t, kRows, units>(args, row, reinterpret_cast<const uint16_t*>(kv), &tile);
    }
    if constexpr (type == KvType::f32) {
      float_block<S, float, kRows, units>(args, row, reinterpret_cast<const float*>(kv), &tile);
    }
  }
  if (args.split >= 0) return store_states<S>(args, row, layout.width, tile);
  const bool one_split = end <= first_end;
  if (!one_split) end_split<S>(layout.width, divide_up(end, kKvSplit) * kKvSplit, tile, &earlier);
  for (int r = 0; r < rows; ++r) {
    float* out = args.out + (row + r) * args.out_stride;
    finish_row<S>(args.head_dim, layout.width, one_split ? tile.sum[r] : earlier.sum[r],
                  (one_split ? tile.acc : earlier.acc) + r * layout.width, out);
  }
}

// How many rows by units of 16 keys or values are held in registers: 6 x 4 with 32 registers of 16 lanes, 4 x 1 where
// S::F consists of several registers.
template <class S, KvType type>
void attend(const AttendArgs& args) {
  constexpr bool one_register = !__is_class(typename S::F);
  for (int row = 0; row < args.rows; row += kTileRows) {
    const int left = args.rows - row;
    attend_tile<S, type, one_register ? 6 : 4, one_register ? 4 : 1>(args, row, left < kTileRows ? left : kTileRows);
  }
}

}  // namespace mobilemoe::vector
