// The scalar reference of attention and its cache: the steps of kernels/vector/attention.h, one element at a time.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/half.h"
#include "kernels/kv_layout.h"
#include "kernels/scalar/scalar.h"

namespace mobilemoe::scalar {
namespace {

constexpr int kLanes = 16;
constexpr float kTiny = 1e-30f;  // 127 divided by at least this stays finite
constexpr float kInfinity = std::numeric_limits<float>::infinity();

float inverse_scale(float largest) { return 127.0f / std::max(largest, kTiny); }

int8_t to_int8(float x) { return std::isnan(x) ? int8_t{0} : static_cast<int8_t>(std::rint(x)); }

// x [count] as int8: x = q * scale. Returns the scale; it is NaN if any x is infinite or NaN.
float quantise(const float* x, int count, int8_t* q) {
  float largest = 0, poison = 0;
  for (int i = 0; i < count; ++i) {
    if (std::fabs(x[i]) > largest) largest = std::fabs(x[i]);
    poison += x[i] * 0.0f;
  }
  for (int i = 0; i < count; ++i) q[i] = to_int8(x[i] * inverse_scale(largest));
  return largest / 127.0f + poison;
}

// How one type of cache computes with one block; the row sees the slots `first` to `last`.
class Int8Block {
 public:
  using Query = int8_t;

  Int8Block(const uint8_t* block, int head_dim) : block_(block), layout_(kv_int8_layout(head_dim)) {}

  static float prepare(const float* q, int head_dim, Query* out) { return quantise(q, head_dim, out); }

  float score(const Query* q, int head_dim, int slot, float scale) const {
    int32_t dot = 0;
    for (int i = 0; i < head_dim; ++i) dot += q[i] * static_cast<int8_t>(block_[(i / 4 * kKvBlock + slot) * 4 + i % 4]);
    return static_cast<float>(dot) * (scale * floats(layout_.k_scale)[slot]);
  }

  // acc = acc * rescale + the sum of p * value; p times the values' scales are rounded to 0 .. 127 first.
  void add_values(const float* p, int first, int last, float rescale, int head_dim, float* acc) const {
    float weight[kKvBlock];
    float largest = 0;
    for (int s = first; s <= last; ++s) {
      weight[s] = p[s] * floats(layout_.v_scale)[s];
      if (weight[s] > largest) largest = weight[s];
    }
    for (int i = 0; i < head_dim; ++i) {
      int32_t dot = 0;
      for (int s = first; s <= last; ++s) {
        const uint8_t value = block_[layout_.v + (s / 4 * layout_.width + i) * 4 + s % 4];
        dot += to_int8(weight[s] * inverse_scale(largest)) * static_cast<int8_t>(value);
      }
      acc[i] = std::fma(static_cast<float>(dot), largest / 127.0f, acc[i] * rescale);
    }
  }

 private:
  const float* floats(size_t at) const { return reinterpret_cast<const float*>(block_ + at); }

  const uint8_t* block_;
  KvInt8Layout layout_;
};

float as_float(float x) { return x; }
float as_float(uint16_t x) { return half_to_float(x); }
void store(float x, float* out) { *out = x; }
void store(float x, uint16_t* out) { *out = float_to_half(x); }

template <class T>
class FloatBlock {
 public:
  using Query = float;

  FloatBlock(const uint8_t* block, int head_dim)
      : block_(reinterpret_cast<const T*>(block)), layout_(kv_float_layout(head_dim)) {}

  static float prepare(const float* q, int head_dim, Query* out) {
    std::copy(q, q + head_dim, out);
    return 1;
  }

  float score(const Query* q, int head_dim, int slot, float scale) const {
    float dot = 0;
    for (int i = 0; i < head_dim; ++i) dot = std::fma(q[i], as_float(block_[i * kKvBlock + slot]), dot);
    return dot * scale;
  }

  void add_values(const float* p, int first, int last, float rescale, int head_dim, float* acc) const {
    const T* values = block_ + layout_.v;
    for (int i = 0; i < head_dim; ++i) {
      acc[i] *= rescale;
      for (int s = first; s <= last; ++s) acc[i] = std::fma(p[s], as_float(values[s * layout_.width + i]), acc[i]);
    }
  }

 private:
  const T* block_;
  KvFloatLayout layout_;
};

// What a row has gathered from the keys of a split, or of several.
struct State {
  float largest = -kInfinity;  // score
  float sum[kLanes] = {};      // of e^(score - largest); slot s belongs to lane s % 16
  float acc[kMaxHeadDim] = {};
};

// Adds a later split's state.
void merge(const State& later, int head_dim, State* state) {
  const float most = std::max(state->largest, later.largest);
  const float keep = exp(state->largest - most), take = exp(later.largest - most);
  for (int lane = 0; lane < kLanes; ++lane) {
    state->sum[lane] = std::fma(state->sum[lane], keep, later.sum[lane] * take);
  }
  for (int i = 0; i < head_dim; ++i) state->acc[i] = std::fma(state->acc[i], keep, later.acc[i] * take);
  state->largest = most;
}

void finish(const State& state, int head_dim, float* out) {
  float sum[kLanes];
  std::copy(state.sum, state.sum + kLanes, sum);
  for (int step = kLanes / 2; step > 0; step /= 2)
    for (int lane = 0; lane < step; ++lane) sum[lane] += sum[lane + step];
  for (int i = 0; i < head_dim; ++i) out[i] = state.acc[i] / sum[0];
}

// One query row over the blocks of the keys begin .. end - 1, which lie in one split.
template <class Block>
State attend_split(const AttendArgs& args, size_t block_bytes, int row, int begin, int end) {
  typename Block::Query query[kMaxHeadDim];
  const float scale = Block::prepare(args.q + row * args.q_stride, args.head_dim, query) * args.scale;
  State state;
  for (int index = begin / kKvBlock; index * kKvBlock < end; ++index) {
    const Block block(args.kv + index * block_bytes, args.head_dim);
    const int first = std::max(begin - index * kKvBlock, 0);
    const int last = std::min(end - index * kKvBlock, kKvBlock) - 1;

    float p[kKvBlock];
    const float before = state.largest;
    for (int s = first; s <= last; ++s) {
      p[s] = block.score(query, args.head_dim, s, scale);
      if (p[s] > state.largest) state.largest = p[s];
    }
    const float rescale = exp(before - state.largest);
    float of_block[kLanes] = {};
    for (int s = first; s <= last; ++s) {
      p[s] = exp(p[s] - state.largest);
      of_block[s % kLanes] += p[s];
    }
    for (int lane = 0; lane < kLanes; ++lane) state.sum[lane] = std::fma(state.sum[lane], rescale, of_block[lane]);
    block.add_values(p, first, last, rescale, args.head_dim, state.acc);
  }
  return state;
}

template <class Block>
void attend_row(const AttendArgs& args, size_t block_bytes, int row) {
  const int end = args.position[row] + 1, begin = args.window > 0 ? std::max(0, end - args.window) : 0;
  const int first = begin / kKvSplit, last = (end - 1) / kKvSplit;
  float* out = args.out + row * args.out_stride;
  const auto state_of = [&](int split) {
    return attend_split<Block>(args, block_bytes, row, std::max(begin, split * kKvSplit),
                               std::min(end, (split + 1) * kKvSplit));
  };
  if (args.split >= 0) {
    if (args.split < first || args.split > last) return;
    const State state = state_of(args.split);
    out[0] = state.largest;
    std::copy(state.sum, state.sum + kLanes, out + 16);
    std::copy(state.acc, state.acc + round_up(args.head_dim, 16), out + 32);
    return;
  }
  State state = state_of(first);
  for (int split = first + 1; split <= last; ++split) merge(state_of(split), args.head_dim, &state);
  finish(state, args.head_dim, out);
}

template <class Block>
void attend(const AttendArgs& args, KvType type) {
  const size_t block_bytes = kv_block_bytes(type, args.head_dim);
  for (int row = 0; row < args.rows; ++row) attend_row<Block>(args, block_bytes, row);
}

template <class T>
void append(const float* k, const float* v, int head_dim, int slot, T* block) {
  const KvFloatLayout layout = kv_float_layout(head_dim);
  for (int i = 0; i < head_dim; ++i) store(k[i], block + i * kKvBlock + slot);
  T* values = block + layout.v + slot * layout.width;
  for (int i = 0; i < layout.width; ++i) store(i < head_dim ? v[i] : 0.0f, values + i);
}

}  // namespace

void kv_append_int8(const float* k, const float* v, int head_dim, int slot, uint8_t* block) {
  const KvInt8Layout layout = kv_int8_layout(head_dim);
  int8_t key[kMaxHeadDim] = {}, value[kMaxHeadDim] = {};
  const float k_scale = quantise(k, head_dim, key), v_scale = quantise(v, head_dim, value);
  int32_t total = 0;
  for (int i = 0; i < layout.quads * 4; ++i) {
    block[(i / 4 * kKvBlock + slot) * 4 + i % 4] = static_cast<uint8_t>(key[i]);
    total += key[i];
  }
  for (int i = 0; i < layout.width; ++i) {
    const int at = (slot / 4 * layout.width + i) * 4 + slot % 4;
    block[layout.v + at] = static_cast<uint8_t>(value[i]);
  }
  // A value that is NaN would vanish in the search for the largest weight, so the key's score carries it.
  reinterpret_cast<float*>(block + layout.k_scale)[slot] = k_scale + 0.0f * v_scale;
  reinterpret_cast<float*>(block + layout.v_scale)[slot] = v_scale;
  reinterpret_cast<int32_t*>(block + layout.k_offset)[slot] = -128 * total;
}

void kv_append_f16(const float* k, const float* v, int head_dim, int slot, uint8_t* block) {
  append(k, v, head_dim, slot, reinterpret_cast<uint16_t*>(block));
}

void kv_append_f32(const float* k, const float* v, int head_dim, int slot, uint8_t* block) {
  append(k, v, head_dim, slot, reinterpret_cast<float*>(block));
}

void attend_int8(const AttendArgs& args) { attend<Int8Block>(args, KvType::int8); }
void attend_f16(const AttendArgs& args) { attend<FloatBlock<uint16_t>>(args, KvType::f16); }
void attend_f32(const AttendArgs& args) { attend<FloatBlock<float>>(args, KvType::f32); }

void merge_splits(const float* states, int count, int head_dim, float* out) {
  const auto state_of = [&](int split) {
    const float* from = states + split * split_state_size(head_dim);
    State state;
    state.largest = from[0];
    std::copy(from + 16, from + 32, state.sum);
    std::copy(from + 32, from + 32 + head_dim, state.acc);
    return state;
  };
  State state = state_of(0);
  for (int split = 1; split < count; ++split) merge(state_of(split), head_dim, &state);
  finish(state, head_dim, out);
}

}  // namespace mobilemoe::scalar
