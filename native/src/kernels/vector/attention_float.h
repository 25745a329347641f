// Attention over fp16 and fp32 keys and values. S is the Simd struct, T uint16_t for fp16 or float.
#pragma once

#include "kernels/vector/attention_tile.h"

namespace mobilemoe::vector {

template <class S>
inline typename S::F load_as_float(const float* p) {
  return S::load(p);
}
template <class S>
inline typename S::F load_as_float(const uint16_t* p) {
  return S::load_f16(p);
}
template <class S>
inline void store_float(float* p, typename S::F x) {
  S::store(p, x);
}
template <class S>
inline void store_float(uint16_t* p, typename S::F x) {
  S::store_f16(p, x);
}

template <class S, class T>
void kv_append_float(const float* k, const float* v, int head_dim, int slot, T* block) {
  const KvFloatLayout layout = kv_float_layout(head_dim);
  float padded[kMaxHeadDim] = {};
  T key[kMaxHeadDim];
  __builtin_memcpy(padded, k, head_dim * sizeof(float));
  for (int i = 0; i < layout.width; i += 16) store_float<S>(key + i, S::load(padded + i));
  for (int i = 0; i < head_dim; ++i) block[i * kKvBlock + slot] = key[i];

  __builtin_memcpy(padded, v, head_dim * sizeof(float));
  T* value = block + layout.v + slot * layout.width;
  for (int i = 0; i < layout.width; i += 16) store_float<S>(value + i, S::load(padded + i));
}

// Scores of n rows from `row` on, for `units` times 16 keys at once.
template <class S, class T, int n, int units>
inline void float_scores(const AttendArgs& args, const float* query, const T* block, int row, Tile<S>* tile) {
  using F = typename S::F;
  for (int unit = 0; unit < kUnits; unit += units) {
    F acc[n][units];
    unroll<n>([&](auto r) { unroll<units>([&](auto u) { acc[r][u] = S::zero(); }); });
    for (int i = 0; i < args.head_dim; ++i) {
      F keys[units];
      unroll<units>([&](auto u) { keys[u] = load_as_float<S>(block + i * kKvBlock + (unit + u) * 16); });
      unroll<n>([&](auto r) {
        const F q = S::set(query[r * args.q_stride + i]);
        unroll<units>([&](auto u) { acc[r][u] = S::fma(q, keys[u], acc[r][u]); });
      });
    }
    unroll<n>([&](auto r) {
      unroll<units>(
          [&](auto u) { S::store(tile->p[row + r] + (unit + u) * 16, S::mul(acc[r][u], S::set(args.scale))); });
    });
  }
}

// acc of n rows from `row` on, which all see the slots first .. last, for `units` times 16 elements of the head.
template <class S, class T, int n, int units>
inline void float_values(const KvFloatLayout& layout, const T* block, int row, int unit, Tile<S>* tile) {
  using F = typename S::F;
  F acc[n][units];
  float* to = tile->acc + row * layout.width + unit * 16;
  unroll<n>([&](auto r) {
    unroll<units>(
        [&](auto u) { acc[r][u] = S::mul(S::load(to + r * layout.width + 16 * u), S::set(tile->rescale[row + r])); });
  });
  for (int s = tile->first[row]; s <= tile->last[row]; ++s) {
    const T* values = block + layout.v + s * layout.width + unit * 16;
    F value[units];
    unroll<units>([&](auto u) { value[u] = load_as_float<S>(values + 16 * u); });
    unroll<n>([&](auto r) {
      const F p = S::set(tile->p[row + r][s]);
      unroll<units>([&](auto u) { acc[r][u] = S::fma(p, value[u], acc[r][u]); });
    });
  }
  unroll<n>([&](auto r) { unroll<units>([&](auto u) { S::store(to + r * layout.width + 16 * u, acc[r][u]); }); });
}

template <class S, class T, int n, int units>
inline void float_values_of_rows(const KvFloatLayout& layout, const T* block, int row, Tile<S>* tile) {
  int unit = 0;
  for (; unit + units <= layout.width / 16; unit += units) float_values<S, T, n, units>(layout, block, row, unit, tile);
  for (; unit < layout.width / 16; ++unit) float_values<S, T, n, 1>(layout, block, row, unit, tile);
}

// One block for all rows of the tile, which begins at row `row` of the call.
template <class S, class T, int kRows, int units>
inline void float_block(const AttendArgs& args, int row, const T* block, Tile<S>* tile) {
  const KvFloatLayout layout = kv_float_layout(args.head_dim);
  for_each_group_of<kRows>(0, tile->rows, [&](int r, auto count) {
    const float* query = args.q + (row + r) * args.q_stride;
    float_scores<S, T, decltype(count)::value, units>(args, query, block, r, tile);
  });
  softmax_step<S>(tile);
  if (tile->whole) {
    for_each_group_of<kRows>(0, tile->rows, [&](int r, auto count) {
      float_values_of_rows<S, T, decltype(count)::value, units>(layout, block, r, tile);
    });
    return;
  }
  // One by one: what one row sees, even infinity or NaN, must not touch a row that does not see it.
  for (int r = 0; r < tile->rows; ++r)
    if (tile->sees(r)) float_values_of_rows<S, T, 1, units>(layout, block, r, tile);
}

}  // namespace mobilemoe::vector
