// The scalar reference: what every instruction set must compute, in the plainest form.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../kernels.h"

namespace mobilemoe::scalar {

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
float log_sum_exp(const float* logits, int count);

void kv_append_int8(const float* k, const float* v, int head_dim, int slot, uint8_t* block);
void kv_append_f16(const float* k, const float* v, int head_dim, int slot, uint8_t* block);
void kv_append_f32(const float* k, const float* v, int head_dim, int slot, uint8_t* block);

void attend_int8(const AttendArgs& args);
void attend_f16(const AttendArgs& args);
void attend_f32(const AttendArgs& args);

}  // namespace mobilemoe::scalar
