// Products in fp32: the router, and matrices whose nibbles are expanded in registers. S is the Simd struct.
#pragma once

#include "kernels/kernels.h"

namespace mobilemoe::vector {

// One panel of the router times R rows. Input i is added to partial sum i % 4; the result is (p0 + p1) + (p2 + p3).
template <class S, int R>
inline void router_tile(const float* weights, size_t width, int inputs, const float* x, size_t x_stride, float* logits,
                        size_t logits_stride) {
  typename S::F partial[4][R];
  for (auto& part : partial)
    for (auto& sum : part) sum = S::zero();
  int i = 0;
  for (; i + 4 <= inputs; i += 4) {
    for (int k = 0; k < 4; ++k, weights += width) {
      const typename S::F weight = S::load(weights);
      for (int r = 0; r < R; ++r) partial[k][r] = S::fma(S::set(x[r * x_stride + i + k]), weight, partial[k][r]);
    }
  }
  for (int k = 0; i < inputs; ++i, ++k, weights += width) {
    for (int r = 0; r < R; ++r) partial[k][r] = S::fma(S::set(x[r * x_stride + i]), S::load(weights), partial[k][r]);
  }
  for (int r = 0; r < R; ++r) {
    S::store(logits + r * logits_stride,
             S::add(S::add(partial[0][r], partial[1][r]), S::add(partial[2][r], partial[3][r])));
  }
}

template <class S>
void router(const float* weights, int panels, int inputs, const float* x, size_t x_stride, int rows, float* logits) {
  const size_t width = size_t{kPanel} * panels;
  for (int panel = 0; panel < panels; ++panel) {
    const float* w = weights + panel * kPanel;
    float* out = logits + panel * kPanel;
    int row = 0;
    for (; row + 4 <= rows; row += 4)
      router_tile<S, 4>(w, width, inputs, x + row * x_stride, x_stride, out + row * width, width);
    for (; row < rows; ++row)
      router_tile<S, 1>(w, width, inputs, x + row * x_stride, x_stride, out + row * width, width);
  }
}

// One panel times `R` rows of floats, input by input.
template <class S, int R>
inline void float_tile(const Matrix& w, int panel, const float* x, size_t x_stride, float* y, size_t y_stride) {
  const bool in = w.axis == Axis::in;
  const uint8_t* nibbles = w.nibbles(panel);
  const uint16_t* scales = w.scales(panel);
  typename S::F acc[R];
  for (int r = 0; r < R; ++r) acc[r] = S::zero();
  for (int group = 0; group < w.groups(); ++group, x += kGroup) {
    const typename S::F by_output = in ? S::load_f16(scales + group * kPanel) : S::zero();
    float by_input[kGroup];
    if (!in) {
      S::store(by_input, S::load_f16(scales + group * kGroup));
      S::store(by_input + 16, S::load_f16(scales + group * kGroup + 16));
    }
    for (int i = 0; i < kGroup; ++i) {
      const typename S::I run = S::load_i(nibbles + group * kGroupBytes + i / 8 * kRun);
      const int bit = 8 * (i % 4) + (i % 8 >= 4 ? 4 : 0);
      const typename S::I nibble = S::and_i(S::shift_right(run, bit), S::set_i(15));
      const typename S::F q = S::to_float(S::add_i(nibble, S::set_i(-8)));
      const typename S::F weight = S::mul(q, in ? by_output : S::set(by_input[i]));
      for (int r = 0; r < R; ++r) acc[r] = S::fma(S::set(x[r * x_stride + i]), weight, acc[r]);
    }
  }
  for (int r = 0; r < R; ++r) S::store(y + r * y_stride, acc[r]);
}

template <class S>
void matmul_floats(const Matrix& w, int begin, int end, const void* x, size_t x_stride, int rows, float* y,
                   size_t y_stride) {
  const float* in = static_cast<const float*>(x);
  const size_t stride = x_stride / sizeof(float);
  for (int panel = begin; panel < end; ++panel, y += kPanel) {
    int row = 0;
    for (; row + 4 <= rows; row += 4)
      float_tile<S, 4>(w, panel, in + row * stride, stride, y + row * y_stride, y_stride);
    for (; row < rows; ++row) float_tile<S, 1>(w, panel, in + row * stride, stride, y + row * y_stride, y_stride);
  }
}

}  // namespace mobilemoe::vector
