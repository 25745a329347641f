// The table for machines with the dot product of Armv8.2.
#include "../vector/table.h"
#include "dot.h"
#include "products.h"
#include "simd.h"

namespace mobilemoe::neon {

const Kernels* kernels() {
  using Dot = Sdot;
  static constexpr Kernels table = vector::table<Simd<Dot>, Dot::Peak>("neon", vector::matmul_blocks<Products<Dot>>,
                                                                       vector::matmul_scaled<Products<Dot>>);
  return &table;
}

}  // namespace mobilemoe::neon
