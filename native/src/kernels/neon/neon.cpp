// The table for machines with the dot product of Armv8.2.
#include "kernels/neon/dot.h"
#include "kernels/neon/products.h"
#include "kernels/neon/simd.h"
#include "kernels/tables.h"
#include "kernels/vector/table.h"

namespace mobilemoe::neon {
namespace {
struct Dotprod;
}

const Kernels* kernels() {
  using Dot = Sdot<Dotprod>;
  static constexpr Kernels table =
      vector::table<Simd<Dotprod>, Dot::Peak>("neon", matmul_blocks<Dot>, matmul_scaled<Dot, Dotprod>);
  return &table;
}

}  // namespace mobilemoe::neon
