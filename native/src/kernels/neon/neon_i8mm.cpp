// The table for machines that multiply matrices of int8: the code of neon with other sums for two rows and more.
#include "kernels/neon/dot.h"
#include "kernels/neon/products.h"
#include "kernels/neon/simd.h"
#include "kernels/tables.h"
#include "kernels/vector/table.h"

namespace mobilemoe::neon_i8mm {
namespace {

struct I8mm;
using One = neon::Sdot<I8mm>;
using More = neon::Smmla<I8mm>;

void matmul_blocks(const Matrix& w, int begin, int end, const void* x, size_t x_stride, int rows, float* y,
                   size_t y_stride) {
  const auto product = rows == 1 ? neon::matmul_blocks<One> : neon::matmul_blocks<More>;
  product(w, begin, end, x, x_stride, rows, y, y_stride);
}

void matmul_scaled(const Matrix& w, int begin, int end, const void* x, size_t x_stride, int rows, float* y,
                   size_t y_stride) {
  const auto product = rows == 1 ? neon::matmul_scaled<One, I8mm> : neon::matmul_scaled<More, I8mm>;
  product(w, begin, end, x, x_stride, rows, y, y_stride);
}

}  // namespace

const Kernels* kernels() {
  static constexpr Kernels table =
      vector::table<neon::Simd<I8mm>, More::Peak>("neon_i8mm", matmul_blocks, matmul_scaled);
  return &table;
}

}  // namespace mobilemoe::neon_i8mm
