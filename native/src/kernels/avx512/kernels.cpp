// The table of AVX-512 kernels.
#include "kernels/avx512/matmul.h"
#include "kernels/avx512/simd.h"
#include "kernels/tables.h"
#include "kernels/vector/table.h"

namespace mobilemoe::avx512 {
namespace {

// Multiplies `groups` groups of R rows by the scales of one pair of panels, and rounds them to int8.
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

template <int P, int R>
void in_tile(const Matrix& w, int panel, const uint8_t* x, size_t x_stride, float* y, size_t y_stride) {
  multiply<P, R, Axis::in>(w, panel, 0, w.groups(), BlockRows<R>(x, x_stride), false, y, y_stride);
}

// Slice by slice, the rows are rounded once for each pair of panels. One row is multiplied by all P panels at once,
// several rows by one panel after the other.
template <int P, int R>
void out_tile(const Matrix& w, int panel, const uint8_t* x, size_t x_stride, float* y, size_t y_stride) {
  constexpr int kTogether = R == 1 ? P : 1;
  for_each_slice(w, [&](int begin, int groups) {
    SliceRow slice[P / 2 * R];
    for (int pair = 0; pair < P / 2; ++pair) {
      round_slice<R>(w, panel + 2 * pair, begin, groups, x, x_stride, slice + pair * R);
    }
    for (int p = 0; p < P; p += kTogether) {
      multiply<kTogether, R, Axis::out>(w, panel + p, begin, groups, SliceRows(slice + p / 2 * R), begin > 0,
                                        y + p * kPanel, y_stride);
    }
  });
}

using TileFunction = void (*)(const Matrix&, int, const uint8_t*, size_t, float*, size_t);
constexpr TileFunction kInTiles[] = {in_tile<1, 1>, in_tile<1, 2>, in_tile<1, 3>, in_tile<1, 4>, in_tile<1, 5>,
                                     in_tile<1, 6>, in_tile<1, 7>, in_tile<1, 8>, in_tile<1, 9>, in_tile<1, 10>};
constexpr TileFunction kOutTiles[] = {out_tile<2, 1>, out_tile<2, 2>, out_tile<2, 3>, out_tile<2, 4>, out_tile<2, 5>,
                                      out_tile<2, 6>, out_tile<2, 7>, out_tile<2, 8>, out_tile<2, 9>, out_tile<2, 10>};
static_assert(sizeof kInTiles / sizeof *kInTiles == kRows && sizeof kOutTiles / sizeof *kOutTiles == kRows);

// The loop over panels is the outer one, so that a panel stays in L1 for all rows. Rows are distributed evenly over
// tiles.
void matmul_rows(const TileFunction* tiles, int step, const Matrix& w, int begin, int end, const uint8_t* x,
                 size_t x_stride, int rows, float* y, size_t y_stride) {
  const int count = divide_up(rows, kRows);
  for (int panel = begin; panel < end; panel += step, y += step * kPanel) {
    for (int i = 0, row = 0; i < count; ++i) {
      const int height = divide_up(rows - row, count - i);
      tiles[height - 1](w, panel, x + row * x_stride, x_stride, y + row * y_stride, y_stride);
      row += height;
    }
  }
}

void matmul_blocks(const Matrix& w, int begin, int end, const void* x, size_t x_stride, int rows, float* y,
                   size_t y_stride) {
  const auto* in = static_cast<const uint8_t*>(x);
  if (rows > 1) return matmul_rows(kInTiles, 1, w, begin, end, in, x_stride, rows, y, y_stride);
  int panel = begin;
  for (; panel + kStreams <= end; panel += kStreams, y += kStreams * kPanel)
    in_tile<kStreams, 1>(w, panel, in, 0, y, 0);
  for (; panel + 2 <= end; panel += 2, y += 2 * kPanel) in_tile<2, 1>(w, panel, in, 0, y, 0);
  if (panel < end) in_tile<1, 1>(w, panel, in, 0, y, 0);
}

void matmul_scaled(const Matrix& w, int begin, int end, const void* x, size_t x_stride, int rows, float* y,
                   size_t y_stride) {
  const auto* in = static_cast<const uint8_t*>(x);
  if (rows > 1) return matmul_rows(kOutTiles, 2, w, begin, end, in, x_stride, rows, y, y_stride);
  int panel = begin;
  for (; panel + kStreams <= end; panel += kStreams, y += kStreams * kPanel)
    out_tile<kStreams, 1>(w, panel, in, 0, y, 0);
  for (; panel < end; panel += 2, y += 2 * kPanel) out_tile<2, 1>(w, panel, in, 0, y, 0);
}

}  // namespace

const Kernels* kernels() {
  static constexpr Kernels table = vector::table<Simd, Peak>("avx512", matmul_blocks, matmul_scaled);
  return &table;
}

}  // namespace mobilemoe::avx512
