// The matrix products of the scalar reference.
#include <algorithm>
#include <cmath>

#include "kernels/half.h"
#include "kernels/scalar/scalar.h"

namespace mobilemoe::scalar {
namespace {

// q + 8 of one weight, out of the 256 bytes of a panel's group.
int nibble(const uint8_t* group, int output, int input) {
  const uint8_t byte = group[input / 8 * kRun + 4 * output + input % 4];
  return input % 8 < 4 ? byte & 15 : byte >> 4;
}

const uint8_t* group_nibbles(const Matrix& w, int panel, int group) {
  return w.nibbles(panel) + size_t{kGroupBytes} * group;
}

// The scale of one weight, as its axis has it.
float weight_scale(const Matrix& w, int panel, int group, int output, int input) {
  const uint16_t* scales = w.scales(panel);
  return half_to_float(w.axis == Axis::in ? scales[group * kPanel + output] : scales[group * kGroup + input]);
}

// Calls dot(panel, output of the panel, row of inputs) for every output of `rows` rows.
template <class Dot>
void for_each_output(int begin, int end, const void* x, size_t x_stride, int rows, float* y, size_t y_stride,
                     const Dot& dot) {
  for (int row = 0; row < rows; ++row) {
    const void* in = static_cast<const uint8_t*>(x) + row * x_stride;
    float* out = y + row * y_stride;
    for (int panel = begin; panel < end; ++panel)
      for (int output = 0; output < kPanel; ++output) *out++ = dot(panel, output, in);
  }
}

int32_t rounded(float x) {
  if (std::isnan(x)) return 0;
  return static_cast<int32_t>(std::rint(std::clamp(x, -127.0f, 127.0f)));
}

}  // namespace

void matmul_blocks(const Matrix& w, int begin, int end, const void* x, size_t x_stride, int rows, float* y,
                   size_t y_stride) {
  for_each_output(begin, end, x, x_stride, rows, y, y_stride, [&](int panel, int output, const void* in) {
    float acc = 0;
    for (int group = 0; group < w.groups(); ++group) {
      const Block& block = static_cast<const Block*>(in)[group];
      const uint8_t* nibbles = group_nibbles(w, panel, group);
      int32_t dot = block.offset;
      for (int i = 0; i < kGroup; ++i) dot += nibble(nibbles, output, i) * block.q[i];
      acc = std::fma(static_cast<float>(dot), weight_scale(w, panel, group, output, 0) * block.scale, acc);
    }
    return acc;
  });
}

void matmul_scaled(const Matrix& w, int begin, int end, const void* x, size_t x_stride, int rows, float* y,
                   size_t y_stride) {
  for_each_output(begin, end, x, x_stride, rows, y, y_stride, [&](int panel, int output, const void* in) {
    float acc = 0;
    for (int group = 0; group < w.groups(); ++group) {
      const ScaledBlock& block = static_cast<const ScaledBlock*>(in)[group];
      const uint8_t* nibbles = group_nibbles(w, panel, group);
      float largest = 0;
      for (int i = 0; i < kGroup; ++i) largest = std::max(largest, std::fabs(weight_scale(w, panel, group, output, i)));
      const float inverse = largest > 0 ? 1.0f / largest : 0.0f;
      int32_t dot = 0;
      for (int i = 0; i < kGroup; ++i) {
        const float t = weight_scale(w, panel, group, output, i) * inverse;
        dot += (nibble(nibbles, output, i) - 8) * rounded(block.v[i] * t);
      }
      acc = std::fma(static_cast<float>(dot), largest * block.scale, acc);
    }
    return acc;
  });
}

void matmul_floats(const Matrix& w, int begin, int end, const void* x, size_t x_stride, int rows, float* y,
                   size_t y_stride) {
  for_each_output(begin, end, x, x_stride, rows, y, y_stride, [&](int panel, int output, const void* in) {
    float acc = 0;
    for (int i = 0; i < w.inputs; ++i) {
      const int q = nibble(group_nibbles(w, panel, i / kGroup), output, i % kGroup) - 8;
      const float weight = static_cast<float>(q) * weight_scale(w, panel, i / kGroup, output, i % kGroup);
      acc = std::fma(static_cast<const float*>(in)[i], weight, acc);
    }
    return acc;
  });
}

void router(const float* weights, int panels, int inputs, const float* x, size_t x_stride, int rows, float* logits) {
  const size_t experts = size_t{kPanel} * panels;
  for (int row = 0; row < rows; ++row) {
    const float* in = x + row * x_stride;
    for (size_t expert = 0; expert < experts; ++expert) {
      float partial[4] = {};
      for (int i = 0; i < inputs; ++i) partial[i % 4] = std::fma(in[i], weights[i * experts + expert], partial[i % 4]);
      *logits++ = (partial[0] + partial[1]) + (partial[2] + partial[3]);
    }
  }
}

}  // namespace mobilemoe::scalar
