// The table for machines with AVX2, FMA and F16C.
#include "kernels/avx2/dot.h"
#include "kernels/avx2/products.h"
#include "kernels/avx2/simd.h"
#include "kernels/tables.h"
#include "kernels/vector/table.h"

namespace mobilemoe::avx2 {

const Kernels* kernels() {
  using Dot = Maddubs;
  static constexpr Kernels table = vector::table<Simd<Dot>, Peak<Dot>>(
      "avx2", vector::matmul_int8<Products<Dot>, Axis::in>, vector::matmul_int8<Products<Dot>, Axis::out>);
  return &table;
}

}  // namespace mobilemoe::avx2
