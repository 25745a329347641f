// The table of AVX-512 kernels.
#include "kernels/avx512/matmul.h"
#include "kernels/avx512/simd.h"
#include "kernels/tables.h"
#include "kernels/vector/table.h"

namespace mobilemoe::avx512 {
namespace {

template <int R>
void in_rows(const Matrix& w, int panel, const uint8_t* x, size_t x_stride, float* y, size_t y_stride) {
  tile<R, Axis::in>(w.nibbles(panel), w.scales(panel), w.groups(), BlockRows<R>(x, x_stride), false, y, y_stride);
}

// `groups` groups of R rows as they meet the scales of one pair of panels.
template <int R>
void round_slice(const Matrix& w, int panel, int begin, int groups, const uint8_t* x, size_t x_stride,
                 SliceRow* slice) {
  for (int group = 0; group < groups; group += 2) {
    const bool second = group + 1 < groups;
    const GroupScales scales(w.scales(panel) + (begin + group) * kGroup, second);
    for (int r = 0; r < R; ++r) {
      const auto* row = reinterpret_cast<const ScaledBlock*>(x + r * x_stride);
      round_groups(row + begin + group, scales, second, group, &slice[r]);
    }
  }
}

// Calls work(begin, groups) for each slice of the inputs.
template <class Work>
void for_each_slice(const Matrix& w, const Work& work) {
  for (int begin = 0; begin < w.groups(); begin += kSliceGroups) {
    work(begin, w.groups() - begin < kSliceGroups ? w.groups() - begin : kSliceGroups);
  }
}

// A pair of panels: slice by slice, the rows are rounded once for both.
template <int R>
void out_rows(const Matrix& w, int panel, const uint8_t* x, size_t x_stride, float* y, size_t y_stride) {
  for_each_slice(w, [&](int begin, int groups) {
    SliceRow slice[R];
    round_slice<R>(w, panel, begin, groups, x, x_stride, slice);
    for (int side = 0; side < 2; ++side) {
      const uint8_t* nibbles = w.nibbles(panel + side) + size_t{kGroupBytes} * begin;
      tile<R, Axis::out>(nibbles, nullptr, groups, SliceRows(slice), begin > 0, y + side * kPanel, y_stride);
    }
  });
}

// P panels times one row.
template <int P>
void in_row(const Matrix& w, int panel, const uint8_t* x, float* y) {
  stream<P, Axis::in>(w, panel, 0, w.groups(), BlockRows<1>(x, 0), false, y);
}

template <int P>
void out_row(const Matrix& w, int panel, const uint8_t* x, float* y) {
  for_each_slice(w, [&](int begin, int groups) {
    SliceRow slice[P / 2];
    for (int pair = 0; pair < P / 2; ++pair) round_slice<1>(w, panel + 2 * pair, begin, groups, x, 0, &slice[pair]);
    stream<P, Axis::out>(w, panel, begin, groups, SliceRows(slice), begin > 0, y);
  });
}

using TileFunction = void (*)(const Matrix&, int, const uint8_t*, size_t, float*, size_t);
constexpr TileFunction kInRows[] = {in_rows<1>, in_rows<2>, in_rows<3>, in_rows<4>, in_rows<5>,
                                    in_rows<6>, in_rows<7>, in_rows<8>, in_rows<9>, in_rows<10>};
constexpr TileFunction kOutRows[] = {out_rows<1>, out_rows<2>, out_rows<3>, out_rows<4>, out_rows<5>,
                                     out_rows<6>, out_rows<7>, out_rows<8>, out_rows<9>, out_rows<10>};
static_assert(sizeof kInRows / sizeof *kInRows == kRows && sizeof kOutRows / sizeof *kOutRows == kRows);

// Panels outermost: their weights stay in L1 for all rows. Rows are dealt evenly to tiles.
void matmul_rows(const TileFunction* functions, int step, const Matrix& w, int begin, int end, const uint8_t* x,
                 size_t x_stride, int rows, float* y, size_t y_stride) {
  const int tiles = divide_up(rows, kRows);
  for (int panel = begin; panel < end; panel += step, y += step * kPanel) {
    for (int i = 0, row = 0; i < tiles; ++i) {
      const int count = divide_up(rows - row, tiles - i);
      functions[count - 1](w, panel, x + row * x_stride, x_stride, y + row * y_stride, y_stride);
      row += count;
    }
  }
}

void matmul_blocks(const Matrix& w, int begin, int end, const void* x, size_t x_stride, int rows, float* y,
                   size_t y_stride) {
  const auto* in = static_cast<const uint8_t*>(x);
  if (rows > 1) return matmul_rows(kInRows, 1, w, begin, end, in, x_stride, rows, y, y_stride);
  int panel = begin;
  for (; panel + kStreams <= end; panel += kStreams, y += kStreams * kPanel) in_row<kStreams>(w, panel, in, y);
  for (; panel + 2 <= end; panel += 2, y += 2 * kPanel) in_row<2>(w, panel, in, y);
  if (panel < end) in_row<1>(w, panel, in, y);
}

void matmul_scaled(const Matrix& w, int begin, int end, const void* x, size_t x_stride, int rows, float* y,
                   size_t y_stride) {
  const auto* in = static_cast<const uint8_t*>(x);
  if (rows > 1) return matmul_rows(kOutRows, 2, w, begin, end, in, x_stride, rows, y, y_stride);
  int panel = begin;
  for (; panel + kStreams <= end; panel += kStreams, y += kStreams * kPanel) out_row<kStreams>(w, panel, in, y);
  for (; panel < end; panel += 2, y += 2 * kPanel) out_row<2>(w, panel, in, y);
}

}  // namespace

const Kernels* kernels() {
  static constexpr Kernels table = vector::table<Simd, Peak>("avx512", matmul_blocks, matmul_scaled);
  return &table;
}

}  // namespace mobilemoe::avx512
