// Everything of a kernel table that is neither a matrix product nor attention. S is the Simd struct.
#pragma once

#include "kernels/kernels.h"
#include "kernels/vector/math.h"

namespace mobilemoe::vector {

// Calls work(32 floats, group) for each group of 32 of x [count], the last one padded with zeros.
template <class Work>
inline void for_each_group(const float* x, int count, const Work& work) {
  const int whole = count / kGroup;
  for (int group = 0; group < whole; ++group) work(x + group * kGroup, group);
  if (count % kGroup == 0) return;
  float tail[kGroup] = {};
  for (int i = whole * kGroup; i < count; ++i) tail[i - whole * kGroup] = x[i];
  work(tail, whole);
}

// max|x| of 32 floats, and the factor that maps them to -127 .. 127. If one of them is not finite, the scale is NaN,
// because rounding would hide it.
template <class S>
inline float inverse_scale(const float* x, float* scale) {
  const typename S::F low = S::load(x), high = S::load(x + 16), zero = S::zero();
  const typename S::F either = S::fma(low, zero, S::fma(high, zero, S::max(S::abs(low), S::abs(high))));
  const float largest = largest_magnitude<S>(either);
  *scale = largest / 127.0f;
  return largest > 0 ? 127.0f / largest : 0.0f;
}

template <class S>
inline typename S::I to_int8(typename S::F x) {
  return S::round(S::min(S::max(x, S::set(-127.0f)), S::set(127.0f)));
}

template <class S>
inline void prepare_block(const float* x, Block* block) {
  const typename S::F inverse = S::set(inverse_scale<S>(x, &block->scale));
  const typename S::I low = to_int8<S>(S::mul(S::load(x), inverse));
  const typename S::I high = to_int8<S>(S::mul(S::load(x + 16), inverse));
  S::store_int8(block->q, low);
  S::store_int8(block->q + 16, high);
  block->offset = -8 * sum_i<S>(S::add_i(low, high));
}

template <class S>
inline void prepare_scaled_block(const float* x, ScaledBlock* block) {
  const typename S::F inverse = S::set(inverse_scale<S>(x, &block->scale));
  S::store(block->v, S::mul(S::load(x), inverse));
  S::store(block->v + 16, S::mul(S::load(x + 16), inverse));
}

template <class S>
inline void copy_group(const float* x, float* out) {
  S::store(out, S::load(x));
  S::store(out + 16, S::load(x + 16));
}

template <class S>
void prepare_blocks(const float* x, int count, void* out) {
  for_each_group(x, count, [&](const float* group, int i) { prepare_block<S>(group, static_cast<Block*>(out) + i); });
}

template <class S>
void prepare_scaled(const float* x, int count, void* out) {
  for_each_group(
      x, count, [&](const float* group, int i) { prepare_scaled_block<S>(group, static_cast<ScaledBlock*>(out) + i); });
}

template <class S>
void prepare_floats(const float* x, int count, void* out) {
  for_each_group(x, count,
                 [&](const float* group, int i) { copy_group<S>(group, static_cast<float*>(out) + i * kGroup); });
}

// silu(gate) * up of 16 lanes; silu(g) = g / (1 + e^-g).
template <class S>
inline typename S::F silu_times(typename S::F gate, typename S::F up) {
  const typename S::F negative = S::sub(S::zero(), gate);
  return S::mul(S::div(gate, S::add(S::set(1.0f), exp<S>(negative))), up);
}

template <class S, Form form>
void swiglu(const float* gate_up, size_t stride, int rows, void* out, size_t out_stride) {
  for (int row = 0; row < rows; ++row) {
    const float* x = gate_up + row * stride;
    float h[kGroup];
    S::store(h, silu_times<S>(S::load(x), S::load(x + kGroup)));
    S::store(h + 16, silu_times<S>(S::load(x + 16), S::load(x + kGroup + 16)));
    uint8_t* to = static_cast<uint8_t*>(out) + row * out_stride;
    if constexpr (form == Form::blocks) prepare_block<S>(h, reinterpret_cast<Block*>(to));
    if constexpr (form == Form::scaled) prepare_scaled_block<S>(h, reinterpret_cast<ScaledBlock*>(to));
    if constexpr (form == Form::floats) copy_group<S>(h, reinterpret_cast<float*>(to));
  }
}

template <class S>
void rms_norm(const float* x, const float* weight, int count, float eps, float* y) {
  const int whole = count / 16 * 16;
  typename S::F squares = S::zero();
  for (int i = 0; i < whole; i += 16) squares = S::fma(S::load(x + i), S::load(x + i), squares);
  if (whole < count) {
    float tail[16] = {};
    for (int i = whole; i < count; ++i) tail[i - whole] = x[i];
    squares = S::fma(S::load(tail), S::load(tail), squares);
  }
  const float factor = 1.0f / __builtin_sqrtf(sum<S>(squares) / static_cast<float>(count) + eps);
  const typename S::F factors = S::set(factor);
  for (int i = 0; i < whole; i += 16) {
    const typename S::F scaled = S::mul(S::load(x + i), factors);
    S::store(y + i, weight == nullptr ? scaled : S::mul(scaled, S::load(weight + i)));
  }
  for (int i = whole; i < count; ++i) y[i] = weight == nullptr ? x[i] * factor : x[i] * factor * weight[i];
}

template <class S>
void add_scaled(const float* x, float scale, int count, float* y) {
  const int whole = count / 16 * 16;
  for (int i = 0; i < whole; i += 16) S::store(y + i, S::fma(S::load(x + i), S::set(scale), S::load(y + i)));
  for (int i = whole; i < count; ++i) y[i] = __builtin_fmaf(x[i], scale, y[i]);
}

template <class S>
void rope(float* x, int count, int head_dim, const float* cos_sin) {
  for (int head = 0; head < count; head += head_dim) {
    for (int i = 0; i < head_dim; i += 2) {
      float* pair = x + head + i;
      const float a = pair[0], b = pair[1], cos = cos_sin[i], sin = cos_sin[i + 1];
      pair[0] = __builtin_fmaf(a, cos, -(b * sin));
      pair[1] = __builtin_fmaf(a, sin, b * cos);
    }
  }
}

// Lane i % 16 sums, as doubles, four powers of each 64, in pairs; then lanes i and i + 8 are added, then 4, 2 and 1
// apart.
template <class S>
double sum_exp(const float* x, int count, float largest) {
  constexpr int kTogether = 64;
  double lane[16] = {};
  for (int begin = 0; begin < count; begin += kTogether) {
    const float* from = x + begin;
    float tail[kTogether];
    if (count - begin < kTogether) {
      for (int i = 0; i < kTogether; ++i) tail[i] = begin + i < count ? from[i] : -__builtin_inff();  // adds nothing
      from = tail;
    }
    float power[kTogether];
    for (int i = 0; i < kTogether; i += 16) S::store(power + i, exp<S>(S::sub(S::load(from + i), S::set(largest))));
    for (int i = 0; i < 16; ++i) {
      const auto value = [&](int part) { return static_cast<double>(power[16 * part + i]); };
      lane[i] += value(0) + value(1) + (value(2) + value(3));
    }
  }
  for (int step = 8; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) lane[i] += lane[i + step];
  return lane[0];
}

template <class S>
float log_sum_exp(const float* logits, int count) {
  const int whole = count / 16 * 16;
  float largest = count > 0 ? logits[0] : 0.0f;
  typename S::F largest_lanes = S::set(largest);
  for (int i = 0; i < whole; i += 16) largest_lanes = S::max(largest_lanes, S::load(logits + i));
  largest = max_lane<S>(largest_lanes);
  for (int i = whole; i < count; ++i) largest = logits[i] > largest ? logits[i] : largest;
  return largest + static_cast<float>(__builtin_log(sum_exp<S>(logits, count, largest)));
}

}  // namespace mobilemoe::vector
