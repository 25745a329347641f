// A cache of keys and values and the queries that look at it, for the tests of attention.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/kv_layout.h"

namespace mobilemoe::scene {

using Floats = std::vector<float>;

constexpr KvType kTypes[] = {KvType::int8, KvType::f16, KvType::f32};
constexpr int kHeadDims[] = {16, 32, 64, 80, 128, 10, 2};

inline size_t size(int count) { return static_cast<size_t>(count); }

inline Floats normal(int count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution;
  Floats values(size(count));
  for (float& value : values) value = distribution(random);
  return values;
}

// Rows of head_dim with a mean square of 1, as QK-norm leaves them.
inline Floats unit_rms(int rows, int head_dim, unsigned seed) {
  Floats values = normal(rows * head_dim, seed);
  for (int row = 0; row < rows; ++row) {
    float* x = values.data() + row * head_dim;
    double squares = 0;
    for (int i = 0; i < head_dim; ++i) squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    for (int i = 0; i < head_dim; ++i) x[i] /= static_cast<float>(std::sqrt(squares / head_dim));
  }
  return values;
}

// `length` tokens in a cache, and queries that look at them.
struct Scene {
  const Kernels& kernels;
  KvType type;
  int head_dim, length;
  Floats k, v;
  std::vector<uint8_t> blocks;
  Floats q;
  std::vector<int> position;
  int window = 0;

  Scene(const Kernels& kernels_, KvType type_, int head_dim_, int length_, uint8_t stale = 0)
      : kernels(kernels_),
        type(type_),
        head_dim(head_dim_),
        length(length_),
        k(unit_rms(length, head_dim, 1)),
        v(normal(length * head_dim, 2)),
        blocks(block_bytes() * size((length + kKvBlock - 1) / kKvBlock), stale) {
    for (int t = 0; t < length; ++t) append(t);
  }

  size_t block_bytes() const { return kv_block_bytes(type, head_dim); }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(head_dim)); }
  int rows() const { return static_cast<int>(position.size()); }

  void append(int token) {
    kernels.kv_append[type](k.data() + token * head_dim, v.data() + token * head_dim, head_dim, token % kKvBlock,
                            blocks.data() + size(token / kKvBlock) * block_bytes());
  }

  void ask(const std::vector<int>& positions, unsigned seed = 3) {
    position = positions;
    q = unit_rms(rows(), head_dim, seed);
  }

  // Rows begin .. end - 1 of the answer, from one call.
  Floats answer(int begin, int end) const {
    Floats out(size((end - begin) * head_dim), -7.0f);
    AttendArgs args{};
    args.q = q.data() + begin * head_dim;
    args.q_stride = size(head_dim);
    args.position = position.data() + begin;
    args.rows = end - begin;
    args.window = window;
    args.kv = blocks.data();
    args.head_dim = head_dim;
    args.scale = scale();
    args.out = out.data();
    args.out_stride = size(head_dim);
    args.split = -1;
    kernels.attend[type](args);
    return out;
  }
  Floats answer() const { return answer(0, rows()); }

  // The same from one call for each split of the keys, and a merge for each row.
  Floats answer_by_splits() const {
    const int splits = divide_up(length, kKvSplit), state = split_state_size(head_dim);
    Floats states(size(rows() * splits * state), -7.0f);
    AttendArgs args{};
    args.q = q.data();
    args.q_stride = size(head_dim);
    args.position = position.data();
    args.rows = rows();
    args.window = window;
    args.kv = blocks.data();
    args.head_dim = head_dim;
    args.scale = scale();
    args.out_stride = size(splits * state);
    for (args.split = 0; args.split < splits; ++args.split) {
      args.out = states.data() + args.split * state;
      kernels.attend[type](args);
    }
    Floats out(size(rows() * head_dim), -7.0f);
    for (int row = 0; row < rows(); ++row) {
      const int last = position[size(row)] / kKvSplit;
      const int first = window > 0 ? std::max(0, position[size(row)] - window + 1) / kKvSplit : 0;
      kernels.merge_splits(states.data() + (row * splits + first) * state, last - first + 1, head_dim,
                           out.data() + row * head_dim);
    }
    return out;
  }

  std::vector<double> exact(int row) const {
    const int last = position[size(row)];
    const int first = window > 0 ? std::max(0, last - window + 1) : 0;
    std::vector<double> score, out(size(head_dim));
    double largest = -std::numeric_limits<double>::infinity(), total = 0;
    for (int t = first; t <= last; ++t) {
      double dot = 0;
      for (int i = 0; i < head_dim; ++i) {
        dot += static_cast<double>(q[size(row * head_dim + i)]) * static_cast<double>(k[size(t * head_dim + i)]);
      }
      score.push_back(dot * static_cast<double>(scale()));
      largest = std::max(largest, score.back());
    }
    for (double& s : score) total += s = std::exp(s - largest);
    for (int t = first; t <= last; ++t) {
      const double p = score[size(t - first)] / total;
      for (int i = 0; i < head_dim; ++i) out[size(i)] += p * static_cast<double>(v[size(t * head_dim + i)]);
    }
    return out;
  }
};

inline bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace mobilemoe::scene
