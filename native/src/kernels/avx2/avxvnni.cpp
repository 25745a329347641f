// The table for machines with AVX-VNNI: the code of AVX2 with another dot product.
#include "kernels/avx2/dot.h"
#include "kernels/avx2/products.h"
#include "kernels/avx2/simd.h"
#include "kernels/tables.h"
#include "kernels/vector/table.h"

namespace mobilemoe::avxvnni {

const Kernels* kernels() {
  using Dot = avx2::Vnni;
  static constexpr Kernels table =
      vector::table<avx2::Simd<Dot>, avx2::Peak<Dot>>("avxvnni", vector::matmul_int8<avx2::Products<Dot>, Axis::in>,
                                                      vector::matmul_int8<avx2::Products<Dot>, Axis::out>);
  return &table;
}

}  // namespace mobilemoe::avxvnni
