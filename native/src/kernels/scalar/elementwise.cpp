// Everything of the scalar reference that is neither a matrix product nor attention.
#include <algorithm>
#include <cmath>

#include "kernels/scalar/scalar.h"

namespace mobilemoe::scalar {
namespace {

// Calls work(32 floats, group) for each group of 32 of x [count], the last one padded with zeros.
template <class Work>
void for_each_group(const float* x, int count, const Work& work) {
  for (int begin = 0; begin < count; begin += kGroup) {
    float group[kGroup] = {};
    std::copy(x + begin, x + std::min(begin + kGroup, count), group);
    work(group, begin / kGroup);
  }
}

float largest_magnitude(const float* group) {
  float largest = 0;
  for (int i = 0; i < kGroup; ++i) {
    if (!std::isfinite(group[i])) return NAN;  // it must not be hidden by rounding
    largest = std::max(largest, std::fabs(group[i]));
  }
  return largest;
}

float inverse_scale(float largest) { return largest > 0 ? 127.0f / largest : 0.0f; }

int8_t to_int8(float x) {
  if (std::isnan(x)) return 0;
  return static_cast<int8_t>(std::rint(std::clamp(x, -127.0f, 127.0f)));
}

float silu(float x) { return x / (1.0f + exp(-x)); }

void swiglu(void (*prepare)(const float*, int, void*), const float* gate_up, size_t stride, int rows, void* out,
            size_t out_stride) {
  for (int row = 0; row < rows; ++row) {
    const float* gate = gate_up + row * stride;
    const float* up = gate + kGroup;
    float h[kGroup];
    for (int i = 0; i < kGroup; ++i) h[i] = silu(gate[i]) * up[i];
    prepare(h, kGroup, static_cast<uint8_t*>(out) + row * out_stride);
  }
}

// Lane l takes terms l, 16 + l, 32 + l, ...; the lanes are then added as a tree.
constexpr int kLanes = 16;

float tree_sum(float* lane) {
  for (int step = kLanes / 2; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) lane[i] += lane[i + step];
  return lane[0];
}

}  // namespace

void prepare_blocks(const float* x, int count, void* out) {
  for_each_group(x, count, [&](const float* group, int index) {
    Block& block = static_cast<Block*>(out)[index];
    const float largest = largest_magnitude(group);
    const float inverse = inverse_scale(largest);
    block.scale = largest / 127.0f;
    int sum = 0;
    for (int i = 0; i < kGroup; ++i) {
      block.q[i] = to_int8(group[i] * inverse);
      sum += block.q[i];
    }
    block.offset = -8 * sum;
  });
}

void prepare_scaled(const float* x, int count, void* out) {
  for_each_group(x, count, [&](const float* group, int index) {
    ScaledBlock& block = static_cast<ScaledBlock*>(out)[index];
    const float largest = largest_magnitude(group);
    const float inverse = inverse_scale(largest);
    block.scale = largest / 127.0f;
    for (int i = 0; i < kGroup; ++i) block.v[i] = group[i] * inverse;
  });
}

void prepare_floats(const float* x, int count, void* out) {
  for_each_group(x, count, [&](const float* group, int index) {
    std::copy(group, group + kGroup, static_cast<float*>(out) + static_cast<ptrdiff_t>(index) * kGroup);
  });
}

void swiglu_blocks(const float* gate_up, size_t stride, int rows, void* out, size_t out_stride) {
  swiglu(prepare_blocks, gate_up, stride, rows, out, out_stride);
}
void swiglu_scaled(const float* gate_up, size_t stride, int rows, void* out, size_t out_stride) {
  swiglu(prepare_scaled, gate_up, stride, rows, out, out_stride);
}
void swiglu_floats(const float* gate_up, size_t stride, int rows, void* out, size_t out_stride) {
  swiglu(prepare_floats, gate_up, stride, rows, out, out_stride);
}

void rms_norm(const float* x, const float* weight, int count, float eps, float* y) {
  float lane[kLanes] = {};
  for (int i = 0; i < count; ++i) lane[i % kLanes] = std::fma(x[i], x[i], lane[i % kLanes]);
  const float mean = tree_sum(lane) / static_cast<float>(count);
  const float factor = 1.0f / std::sqrt(mean + eps);
  for (int i = 0; i < count; ++i) {
    y[i] = x[i] * factor;
    if (weight != nullptr) y[i] *= weight[i];
  }
}

void rope(float* x, int count, int head_dim, const float* cos_sin) {
  for (int i = 0; i + 1 < count; i += 2) {
    const float a = x[i];
    const float b = x[i + 1];
    const float cos = cos_sin[i % head_dim];
    const float sin = cos_sin[i % head_dim + 1];
    x[i] = std::fma(a, cos, -(b * sin));
    x[i + 1] = std::fma(a, sin, b * cos);
  }
}

void add_scaled(const float* x, float scale, int count, float* y) {
  for (int i = 0; i < count; ++i) y[i] = std::fma(x[i], scale, y[i]);
}

double sum_exp(const float* x, int count, float largest) {
  double lane[kLanes] = {};
  for (int begin = 0; begin < count; begin += 4 * kLanes) {
    for (int i = 0; i < kLanes; ++i) {
      double part[4] = {};
      for (int j = 0; j < 4; ++j) {
        const int at = begin + j * kLanes + i;
        if (at < count) part[j] = static_cast<double>(exp(x[at] - largest));
      }
      lane[i] += part[0] + part[1] + (part[2] + part[3]);
    }
  }
  for (int step = kLanes / 2; step > 0; step /= 2) {
    for (int i = 0; i < step; ++i) lane[i] += lane[i + step];
  }
  return lane[0];
}

float log_sum_exp(const float* logits, int count) {
  const float largest = *std::max_element(logits, logits + count);
  return largest + static_cast<float>(std::log(sum_exp(logits, count, largest)));
}

}  // namespace mobilemoe::scalar
