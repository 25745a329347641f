// The table of the scalar reference.
#include "kernels/scalar/scalar.h"
#include "kernels/tables.h"

namespace mobilemoe::scalar {

const Kernels* kernels() {
  static constexpr Kernels table = {
      "scalar",
      {prepare_blocks, prepare_scaled, prepare_floats},
      {matmul_blocks, matmul_scaled, matmul_floats},
      {swiglu_blocks, swiglu_scaled, swiglu_floats},
      rms_norm,
      router,
      rope,
      add_scaled,
      {kv_append_int8, kv_append_f16, kv_append_f32},
      {attend_int8, attend_f16, attend_f32},
      merge_splits,
      sum_exp,
      log_sum_exp,
      largest,
      weigh,
      add_powers<1>,
      add_powers<3>,
      allow,
      between,
      nullptr,
  };
  return &table;
}

}  // namespace mobilemoe::scalar
