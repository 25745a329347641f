// The table for machines with the dot product of Armv8.2.
#include "kernels/neon/dot.h"
#include "kernels/neon/products.h"
#include "kernels/neon/simd.h"
#include "kernels/tables.h"
#include "kernels/vector/table.h"

namespace mobilemoe::neon {

const Kernels* kernels() {
  using Dot = Sdot;
  static constexpr Kernels table = vector::table<Simd<Dot>, Dot::Peak>("neon", vector::matmul_blocks<Products<Dot>>,
                                                                       vector::matmul_scaled<Products<Dot>>);
  return &table;
}

}  // namespace mobilemoe::neon
