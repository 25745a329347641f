// The table for machines that multiply matrices of int8: the code of neon with other sums.
#include "kernels/neon/dot.h"
#include "kernels/neon/products.h"
#include "kernels/neon/simd.h"
#include "kernels/tables.h"
#include "kernels/vector/table.h"

namespace mobilemoe::neon_i8mm {

const Kernels* kernels() {
  using Dot = neon::Smmla;
  static constexpr Kernels table = vector::table<neon::Simd<Dot>, Dot::Peak>(
      "neon_i8mm", vector::matmul_blocks<neon::Products<Dot>>, vector::matmul_scaled<neon::Products<Dot>>);
  return &table;
}

}  // namespace mobilemoe::neon_i8mm
