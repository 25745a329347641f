// The table for machines that multiply matrices of int8: the code of neon with other sums.
#include "../vector/table.h"
#include "dot.h"
#include "products.h"
#include "simd.h"

namespace mobilemoe::neon_i8mm {

const Kernels* kernels() {
  using Dot = neon::Smmla;
  static constexpr Kernels table = vector::table<neon::Simd<Dot>, neon::Products<Dot>, Dot::Peak>("neon_i8mm");
  return &table;
}

}  // namespace mobilemoe::neon_i8mm
