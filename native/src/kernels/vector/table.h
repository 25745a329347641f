// A table of kernels made of the templates of this folder: S is the Simd struct of an instruction set, Peak its fastest
// instruction for INT8 products (peak.h), which the instruction set brings itself.
#pragma once

#include "kernels/selection.h"
#include "kernels/vector/attention.h"
#include "kernels/vector/between.h"
#include "kernels/vector/elementwise.h"
#include "kernels/vector/largest.h"
#include "kernels/vector/peak.h"
#include "kernels/vector/powers.h"
#include "kernels/vector/products.h"
#include "kernels/weight.h"

namespace mobilemoe::vector {

using Matmul = void (*)(const Matrix&, int, int, const void*, size_t, int, float*, size_t);

template <class S, class Peak>
constexpr Kernels table(const char* isa, Matmul blocks, Matmul scaled) {
  return {
      isa,
      {prepare_blocks<S>, prepare_scaled<S>, prepare_floats<S>},
      {blocks, scaled, matmul_floats<S>},
      {swiglu<S, Form::blocks>, swiglu<S, Form::scaled>, swiglu<S, Form::floats>},
      rms_norm<S>,
      router<S>,
      rope<S>,
      add_scaled<S>,
      {kv_append<S, KvType::int8>, kv_append<S, KvType::f16>, kv_append<S, KvType::f32>},
      {attend<S, KvType::int8>, attend<S, KvType::f16>, attend<S, KvType::f32>},
      merge_splits<S>,
      sum_exp<S>,
      log_sum_exp<S>,
      largest<S>,
      weigh<S>,
      add_powers<S, 1>,
      add_powers<S, 3>,
      allow<S>,
      between<S>,
      multiply_adds<Peak>,
  };
}

}  // namespace mobilemoe::vector
