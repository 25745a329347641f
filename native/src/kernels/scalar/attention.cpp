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

// One query row over the blocks of the keys begin .. position.
template <class Block>
void attend_row(const AttendArgs& args, size_t block_bytes, int row) {
  const int position = args.position[row];
  const int begin = args.window > 0 ? std::max(0, position - args.window + 1) : 0;
  typename Block::Query query[kMaxHeadDim];
  const float scale = Block::prepare(args.q + row * args.q_stride, args.head_dim, query) * args.scale;

  float largest = -kInfinity;
  float sum[kLanes] = {};  // slot s belongs to lane s % 16
  float acc[kMaxHeadDim] = {};
  for (int index = begin / kKvBlock; index <= position / kKvBlock; ++index) {
    const Block block(args.kv + index * block_bytes, args.head_dim);
    const int first = std::max(begin - index * kKvBlock, 0);
    const int last = std::min(position - index * kKvBlock, kKvBlock - 1);

    float p[kKvBlock];
    const float before = largest;
    for (int s = first; s <= last; ++s) {
      p[s] = block.score(query, args.head_dim, s, scale);
      if (p[s] > largest) largest = p[s];
    }
    const float rescale = exp(before - largest);
    float of_block[kLanes] = {};
    for (int s = first; s <= last; ++s) {
      p[s] = exp(p[s] - largest);
      of_block[s % kLanes] += p[s];
    }
    for (int lane = 0; lane < kLanes; ++lane) sum[lane] = std::fma(sum[lane], rescale, of_block[lane]);
    block.add_values(p, first, last, rescale, args.head_dim, acc);
  }
  for (int step = kLanes / 2; step > 0; step /= 2)
    for (int lane = 0; lane < step; ++lane) sum[lane] += sum[lane + step];
  float* out = args.out + row * args.out_stride;
  for (int i = 0; i < args.head_dim; ++i) out[i] = acc[i] / sum[0];
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

}  // namespace mobilemoe::scalar
