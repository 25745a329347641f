// A table of kernels made of the templates of this folder: S is the Simd struct of an instruction set, P its INT8
// products (int8_products.h), Peak its fastest instruction for these (peak.h).
#pragma once

#include "attention.h"
#include "elementwise.h"
#include "int8_products.h"
#include "peak.h"
#include "products.h"

namespace mobilemoe::vector {

template <class S, class P, class Peak>
constexpr Kernels table(const char* isa) {
  return {
      isa,
      {prepare_blocks<S>, prepare_scaled<S>, prepare_floats<S>},
      {matmul_blocks<P>, matmul_scaled<P>, matmul_floats<S>},
      {swiglu<S, Form::blocks>, swiglu<S, Form::scaled>, swiglu<S, Form::floats>},
      rms_norm<S>,
      router<S>,
      rope<S>,
      add_scaled<S>,
      {kv_append<S, KvType::int8>, kv_append<S, KvType::f16>, kv_append<S, KvType::f32>},
      {attend<S, KvType::int8>, attend<S, KvType::f16>, attend<S, KvType::f32>},
      log_sum_exp<S>,
      multiply_adds<Peak>,
  };
}

}  // namespace mobilemoe::vector
