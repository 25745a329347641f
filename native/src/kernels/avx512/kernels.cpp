// The table of AVX-512 kernels.
#include "kernels/avx512/products.h"
#include "kernels/avx512/simd.h"
#include "kernels/tables.h"
#include "kernels/vector/table.h"

namespace mobilemoe::avx512 {

const Kernels* kernels() {
  static constexpr Kernels table = vector::table<Simd, Peak>("avx512", vector::matmul_int8<Products, Axis::in>,
                                                             vector::matmul_int8<Products, Axis::out>);
  return &table;
}

}  // namespace mobilemoe::avx512
