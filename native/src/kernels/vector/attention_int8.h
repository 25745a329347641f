// Attention over int8 keys and values: both products are integer dot products. S is the Simd struct.
#pragma once

#include "kernels/vector/attention_tile.h"

namespace mobilemoe::vector {

// x [count, a multiple of 16] as int8: x = q * scale. Returns the scale; it is NaN if any x is infinite or NaN.
template <class S>
inline float quantise(const float* x, int count, int8_t* q) {
  using F = typename S::F;
  F largest = S::zero(), poison = S::zero();
  for (int i = 0; i < count; i += 16) {
    largest = S::max(S::abs(S::load(x + i)), largest);
    poison = S::fma(S::load(x + i), S::zero(), poison);
  }
  const float most = largest_lane<S>(largest);
  const F inverse = S::set(127.0f / (most > kTiny ? most : kTiny));
  for (int i = 0; i < count; i += 16) S::store_int8(q + i, S::round(S::mul(S::load(x + i), inverse)));
  return most / 127.0f + sum<S>(poison);
}

template <class S>
void kv_append_int8(const float* k, const float* v, int head_dim, int slot, uint8_t* block) {
  const KvInt8Layout layout = kv_int8_layout(head_dim);
  float padded[kMaxHeadDim] = {};
  int8_t q[kMaxHeadDim];
  __builtin_memcpy(padded, k, head_dim * sizeof(float));
  const float k_scale = quantise<S>(padded, layout.width, q);
  int32_t total = 0;
  for (int i = 0; i < layout.width; ++i) total += q[i];
  for (int i = 0; i < layout.quads; ++i) __builtin_memcpy(block + (i * kKvBlock + slot) * 4, q + 4 * i, 4);

  __builtin_memcpy(padded, v, head_dim * sizeof(float));
  const float v_scale = quantise<S>(padded, layout.width, q);
  uint8_t* values = block + layout.v + slot / 4 * layout.width * 4 + slot % 4;
  for (int i = 0; i < layout.width; ++i) values[4 * i] = static_cast<uint8_t>(q[i]);

  // The search for the largest weight would ignore a value that is NaN, so the key's score is made NaN instead.
  reinterpret_cast<float*>(block + layout.k_scale)[slot] = k_scale + 0.0f * v_scale;
  reinterpret_cast<float*>(block + layout.v_scale)[slot] = v_scale;
  reinterpret_cast<int32_t*>(block + layout.k_offset)[slot] = -128 * total;
}

// The integer side of a tile.
struct Int8Rows {
  size_t ahead;  // how many bytes ahead blocks are prefetched into L2: for the first tile of a call they are in memory
  float scale[kTileRows];                              // of the query, times the scale of scores
  float weight_scale[kTileRows];                       // of the block's weights
  alignas(64) uint8_t weights[kTileRows][kKvBlock];    // e^(score - largest) * scale of the value, 0 .. 127
  alignas(64) uint8_t query[kTileRows * kMaxHeadDim];  // [rows][width]
};

template <class S>
inline void start_queries(const AttendArgs& args, int row, int rows, int width, Int8Rows* side) {
  side->ahead = row == 0 ? kv_int8_layout(args.head_dim).bytes : 0;
  float padded[kMaxHeadDim] = {};
  int8_t q[kMaxHeadDim];
  for (int r = 0; r < rows; ++r) {
    const float* from = args.q + (row + r) * args.q_stride;
    __builtin_memcpy(padded, from, args.head_dim * sizeof(float));
    side->scale[r] = quantise<S>(padded, width, q) * args.scale;
    for (int i = 0; i < width; ++i) side->query[r * width + i] = S::query_byte(q[i]);
    for (int s = 0; s < kKvBlock; ++s) side->weights[r][s] = 0;
  }
}

// Scores of n rows from `row` on, for `units` times 16 keys at once.
template <class S, int n, int units>
inline void int8_scores(const KvInt8Layout& layout, const uint8_t* block, int row, const Int8Rows& side,
                        Tile<S>* tile) {
  using I = typename S::I;
  const auto* offset = reinterpret_cast<const int32_t*>(block + layout.k_offset);
  const auto* scale = reinterpret_cast<const float*>(block + layout.k_scale);
  const uint8_t* query = side.query + row * layout.width;
  for (int unit = 0; unit < kUnits; unit += units) {
    I acc[n][units];
    unroll<n>([&](auto r) {
      unroll<units>([&](auto u) { acc[r][u] = S::kShiftedQuery ? S::load_i(offset + (unit + u) * 16) : S::zero_i(); });
    });
    for (int quad = 0; quad < layout.quads; ++quad) {
      I keys[units];
      unroll<units>([&](auto u) {
        const uint8_t* at = block + (quad * kUnits + unit + u) * 64;
        __builtin_prefetch(at + side.ahead, 0, 1);
        keys[u] = S::load_i(at);
      });
      unroll<n>([&](auto r) {
        const I q = S::broadcast(query + r * layout.width + quad * 4);
        unroll<units>([&](auto u) { acc[r][u] = S::dot_query(acc[r][u], q, keys[u]); });
      });
    }
    unroll<n>([&](auto r) {
      unroll<units>([&](auto u) {
        const typename S::F factor = S::mul(S::set(side.scale[row + r]), S::load(scale + (unit + u) * 16));
        S::store(tile->p[row + r] + (unit + u) * 16, S::mul(S::to_float(acc[r][u]), factor));
      });
    });
  }
}

// Weights of the block's values as bytes, in units of weight_scale.
template <class S>
inline void int8_weights(const KvInt8Layout& layout, const uint8_t* block, const Tile<S>& tile, Int8Rows* side) {
  using F = typename S::F;
  const auto* scale = reinterpret_cast<const float*>(block + layout.v_scale);
  for (int r = 0; r < tile.rows; ++r) {
    if (!tile.sees(r)) continue;
    F weight[kUnits];
    if (tile.sees_all(r)) {
      unroll<kUnits>([&](auto u) { weight[u] = S::mul(S::load(tile.p[r] + 16 * u), S::load(scale + 16 * u)); });
    } else {
      unroll<kUnits>(
          [&](auto u) { weight[u] = S::mul(S::load(tile.p[r] + 16 * u), seen_values<S>(tile, r, scale, 16 * u)); });
    }
    const float most = largest_lane<S>(S::max(S::max(weight[0], weight[1]), S::max(weight[2], weight[3])));
    const F inverse = S::set(127.0f / (most > kTiny ? most : kTiny));
    side->weight_scale[r] = most / 127.0f;
    auto* bytes = reinterpret_cast<int8_t*>(side->weights[r]);
    unroll<kUnits>([&](auto u) { S::store_int8(bytes + 16 * u, S::round(S::mul(weight[u], inverse))); });
  }
}

// acc of n rows from `row` on, for `units` times 16 elements of the head from `unit` on.
template <class S, int n, int units>
inline void int8_values(const KvInt8Layout& layout, const uint8_t* block, int row, int unit, const Int8Rows& side,
                        Tile<S>* tile) {
  using I = typename S::I;
  using F = typename S::F;
  I acc[n][units];
  unroll<n>([&](auto r) { unroll<units>([&](auto u) { acc[r][u] = S::zero_i(); }); });
  const uint8_t* values = block + layout.v + unit * 64;
  for (int quad = 0; quad < kKvBlock / 4; ++quad, values += layout.width * 4) {
    I value[units];
    unroll<units>([&](auto u) {
      __builtin_prefetch(values + side.ahead + u * 64, 0, 1);
      value[u] = S::load_i(values + u * 64);
    });
    unroll<n>([&](auto r) {
      const I weight = S::broadcast(side.weights[row + r] + quad * 4);
      unroll<units>([&](auto u) { acc[r][u] = S::dot(acc[r][u], weight, value[u]); });
    });
  }
  unroll<n>([&](auto r) {
    if (!tile->sees(row + r)) return;
    float* to = tile->acc + (row + r) * layout.width + unit * 16;
    const F rescale = S::set(tile->rescale[row + r]), scale = S::set(side.weight_scale[row + r]);
    unroll<units>([&](auto u) {
      S::store(to + 16 * u, S::fma(S::to_float(acc[r][u]), scale, S::mul(S::load(to + 16 * u), rescale)));
    });
  });
}

// One block for all rows of the tile.
template <class S, int kRows, int units>
inline void int8_block(const KvInt8Layout& layout, const uint8_t* block, Tile<S>* tile, Int8Rows* side) {
  for_each_group_of<kRows>(0, tile->rows, [&](int row, auto count) {
    int8_scores<S, decltype(count)::value, units>(layout, block, row, *side, tile);
  });
  softmax_step<S>(tile);
  int8_weights<S>(layout, block, *tile, side);
  for_each_group_of<kRows>(0, tile->rows, [&](int row, auto count) {
    constexpr int n = decltype(count)::value;
    int unit = 0;
    for (; unit + units <= layout.width / 16; unit += units) {
      int8_values<S, n, units>(layout, block, row, unit, *side, tile);
    }
    for (; unit < layout.width / 16; ++unit) int8_values<S, n, 1>(layout, block, row, unit, *side, tile);
  });
}

}  // namespace mobilemoe::vector
