// The scalar reference: what every instruction set must compute, in the plainest form.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"

namespace mobilemoe::scalar {

// e^x as all instruction sets compute it, step by step (kernels/vector/math.h): std::exp differs in the last bit, which
// the rounding of activations to int8 and the choice of experts would make visible.
inline float exp(float x) {
  if (std::isnan(x)) return x;
  x = std::clamp(x, -88.0f, 88.3f);
  const float n = std::rint(x * 1.44269504f);
  const float r = std::fma(n, 2.12194440e-4f, std::fma(n, -0.693359375f, x));
  float p = 1.9875691e-4f;
  for (const float coefficient : {1.3981999e-3f, 8.3334519e-3f, 4.1665796e-2f, 1.6666665e-1f, 5.0000000e-1f}) {
    p = std::fma(p, r, coefficient);
  }
  p = std::fma(p * r, r, r + 1.0f);
  return p * (n == -127.0f ? 0.0f : std::ldexp(1.0f, static_cast<int>(n)));
}

void prepare_blocks(const float* x, int count, void* out);
void prepare_scaled(const float* x, int count, void* out);
void prepare_floats(const float* x, int count, void* out);

void matmul_blocks(const Matrix& w, int begin, int end, const void* x, size_t x_stride, int rows, float* y,
                   size_t y_stride);
void matmul_scaled(const Matrix& w, int begin, int end, const void* x, size_t x_stride, int rows, float* y,
                   size_t y_stride);
void matmul_floats(const Matrix& w, int begin, int end, const void* x, size_t x_stride, int rows, float* y,
                   size_t y_stride);
void router(const float* weights, int panels, int inputs, const float* x, size_t x_stride, int rows, float* logits);

void swiglu_blocks(const float* gate_up, size_t stride, int rows, void* out, size_t out_stride);
void swiglu_scaled(const float* gate_up, size_t stride, int rows, void* out, size_t out_stride);
void swiglu_floats(const float* gate_up, size_t stride, int rows, void* out, size_t out_stride);

void rms_norm(const float* x, const float* weight, int count, float eps, float* y);
void rope(float* x, int count, int head_dim, const float* cos_sin);
void add_scaled(const float* x, float scale, int count, float* y);
double sum_exp(const float* x, int count, float largest);
float log_sum_exp(const float* logits, int count);

void largest(const float* scores, int count, float* largest);
uint64_t weigh(const float* scores, int count, const Weighing& weighing, uint64_t* weights, int16_t* buckets);

template <int kSums>
void add_powers(const float* scores, int count, const Powers& powers, const float* least, double* sums) {
  std::fill_n(sums, kSums, 0.0);
  for (int i = 0; i < count; ++i) {
    const double exponent = static_cast<double>(scores[i]) * (static_cast<double>(powers.factor) + powers.factor_rest);
    const double power = std::exp2(exponent + powers.offset);
    for (int j = 0; j < kSums; ++j) sums[j] += scores[i] >= least[j] ? power : 0;
  }
}

void allow(const float* scores, int count, const uint32_t* allowed, float* out);
int between(const float* scores, int count, float low, float high, int* found);

void kv_append_int8(const float* k, const float* v, int head_dim, int slot, uint8_t* block);
void kv_append_f16(const float* k, const float* v, int head_dim, int slot, uint8_t* block);
void kv_append_f32(const float* k, const float* v, int head_dim, int slot, uint8_t* block);

void attend_int8(const AttendArgs& args);
void attend_f16(const AttendArgs& args);
void attend_f32(const AttendArgs& args);
void merge_splits(const float* states, int count, int head_dim, float* out);

}  // namespace mobilemoe::scalar
