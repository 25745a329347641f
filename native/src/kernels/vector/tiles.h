// INT4 x INT8 products of AVX2, AVX-VNNI and AVX-512, in tiles of P panels by R rows whose sums stay in registers. Few
// rows are multiplied by many panels at once, which are as many streams from memory. The arithmetic of an instruction
// set is a struct A:
//   A::S                           its Simd struct
//   A::begin(offset), add(sum, nibbles, inputs), end(sum, offset)
//                                  the exact sums of one group, 4 inputs of 16 outputs at a time
//   A::kSums, A::kRows             the most sums of a tile: P x R, and the most rows
//   A::largest_magnitude(scales)   of 32 fp16 scales
//   A::round(x, scales, groups, out)  groups of a row times these scales (ScaleSlice), rounded to int8
// Members of what is no template of A are always inlined: the linker must not merge those of two instruction sets.
#pragma once

#include <cstddef>

#include "kernels/kernels.h"
#include "kernels/vector/unroll.h"

namespace mobilemoe::vector {

constexpr int kMostPanels = 8;                        // of a tile
constexpr int kSlice = 32;                            // groups of Axis::out that are rounded, on the stack, at a time
constexpr int kBand = 12;                             // and rows, over all pairs of panels
constexpr int kGroupStep = kGroupBytes + 2 * kPanel;  // bytes of a panel for each group, scales included

// Rows of Blocks: R for each pair of panels if `pairs` is not 0, otherwise R for all panels. Only every third row has
// its own pointer; the two rows after it are addressed as that pointer plus one or two strides, which an instruction
// can do itself. A pointer for each row would take more registers than there are.
template <int R, int pairs = 0>
struct BlockRows {
  const uint8_t* base[pairs == 0 ? 1 : pairs][(R + 2) / 3];
  size_t stride;

  __attribute__((always_inline)) BlockRows(const uint8_t* x, size_t row_stride, size_t pair_stride = 0)
      : stride(row_stride) {
    for (auto& rows : base) {
      for (int i = 0; i < (R + 2) / 3; ++i) rows[i] = x + 3 * i * stride;
      x += pair_stride;
    }
  }
  __attribute__((always_inline)) const Block* row(int panel, int r) const {
    return reinterpret_cast<const Block*>(base[pairs == 0 ? 0 : panel / 2][r / 3] + r % 3 * stride);
  }
  __attribute__((always_inline)) float scale(int r) const { return row(0, r)->scale; }
  __attribute__((always_inline)) void next_group() {
    for (auto& rows : base)
      for (const uint8_t*& p : rows) p += sizeof(Block);
  }
};

// What is brought into L2 during a product: as many bytes as it reads of its own weights, a share in each step of it,
// so that the memory is never idle for long.
struct Ahead {
  const uint8_t *at, *end;

  // The share of one step: the next bytes, which are then no longer here.
  Ahead take(size_t bytes) {
    const auto left = static_cast<size_t>(end - at);
    const Ahead share = {at, at + (bytes < left ? bytes : left)};
    at = share.end;
    return share;
  }
  template <int bytes>
  __attribute__((always_inline)) void fetch() {
    if (at >= end) return;
    for (int line = 0; line < bytes; line += 64) __builtin_prefetch(at + line, 0, 2);
    at += bytes;
  }
  void fetch_all() const {
    for (const uint8_t* line = at; line < end; line += 64) __builtin_prefetch(line, 0, 2);
  }
};

// What one tile reads and writes: groups [first, first + groups) of the panels from `panel` on, rows of Blocks, those
// of further pairs of panels pair_stride later, and outputs, to which it adds if `first` is not 0.
struct ProductTile {
  const Matrix* w;
  int panel, first, groups;
  const uint8_t* x;
  size_t x_stride, pair_stride;
  float* y;
  size_t y_stride;
};

template <class A, Axis axis, int P, int R>
void multiply_tile(const ProductTile& tile, Ahead ahead) {
  using S = typename A::S;
  constexpr bool kIn = axis == Axis::in;
  const Matrix& w = *tile.w;
  const auto output = [&](int p, int r) { return tile.y + p * kPanel + r * tile.y_stride; };
  const auto nibbles_of = [&](int p) { return w.nibbles(tile.panel + p) + size_t{kGroupBytes} * tile.first; };
  const uint8_t* nibbles[P];
  typename S::F sum[P][R];
  unroll<P>([&](auto p) {
    nibbles[p] = nibbles_of(p);
    unroll<R>([&](auto r) { sum[p][r] = tile.first > 0 ? S::load(output(p, r)) : S::zero(); });
  });
  BlockRows<R, kIn ? 0 : (P + 1) / 2> rows(tile.x, tile.x_stride, tile.pair_stride);
  for (int group = 0; group < tile.groups; ++group) {
    ahead.fetch<P * kGroupStep>();
    typename S::I dot[P][R];
    unroll<P>([&](auto p) { unroll<R>([&](auto r) { dot[p][r] = A::begin(rows.row(p, r)->offset); }); });
    unroll<kGroup / 4>([&](auto four) {
      typename S::I weights[P];
      unroll<P>([&](auto p) {
        const typename S::I packed = S::load_i(nibbles[p] + four / 2 * kRun);
        weights[p] = S::and_i(four % 2 == 0 ? packed : S::shift_right(packed, 4), S::set_i(0x0f0f0f0f));
      });
      unroll<R>([&](auto r) {
        unroll<P>(
            [&](auto p) { dot[p][r] = A::add(dot[p][r], weights[p], S::broadcast(rows.row(p, r)->q + 4 * four)); });
      });
    });
    unroll<P>([&](auto p) {
      typename S::F by_output;
      if constexpr (kIn) by_output = S::load_f16(w.scales(tile.panel + p) + group * kPanel);
      unroll<R>([&](auto r) {
        const Block* block = rows.row(p, r);
        typename S::F scale = S::set(block->scale);
        if constexpr (kIn) scale = S::mul(by_output, scale);
        sum[p][r] = S::fma(S::to_float(A::end(dot[p][r], block->offset)), scale, sum[p][r]);
      });
      nibbles[p] += kGroupBytes;
    });
    rows.next_group();
  }
  unroll<P>([&](auto p) { unroll<R>([&](auto r) { S::store(output(p, r), sum[p][r]); }); });
}

constexpr int smaller(int a, int b) { return a < b ? a : b; }

// How many panels fit into a tile of so many rows.
template <class A>
constexpr int panels_of(int rows) {
  int panels = kMostPanels;
  while (panels > 1 && panels * rows > A::kSums) panels /= 2;
  return panels;
}

// A tile and those below it, rows distributed evenly. The weights of a tile stay in L1 for all of them.
template <class A, Axis axis, int P, int... heights>
void multiply_column(ProductTile tile, int rows, Ahead next, Counts<heights...>) {
  using Function = void (*)(const ProductTile&, Ahead);
  static constexpr Function kTiles[] = {multiply_tile<A, axis, P, heights + 1>...};
  const int count = divide_up(rows, static_cast<int>(sizeof...(heights)));
  const size_t share = divide_up(static_cast<int>(next.end - next.at), count);
  for (int i = 0; i < count; ++i) {
    const int height = divide_up(rows, count - i);
    kTiles[height - 1](tile, next.take(share));
    tile.x += height * tile.x_stride;
    tile.y += height * tile.y_stride;
    rows -= height;
  }
}

template <class A, Axis axis, int P>
void multiply_column(const ProductTile& tile, int rows, Ahead next) {
  multiply_column<A, axis, P>(tile, rows, next, CountsBelow<smaller(A::kRows, A::kSums / P)>());
}

// The scales of a slice of Axis::out, one for each input.
struct ScaleSlice {
  float share[kSlice][kGroup];  // over the largest of the group
  float largest[kSlice];
};

template <class A>
void fill_scales(const uint16_t* scales, int groups, ScaleSlice* out) {
  using S = typename A::S;
  for (int group = 0; group < groups; ++group, scales += kGroup) {
    const float largest = out->largest[group] = A::largest_magnitude(scales);
    const typename S::F inverse = S::set(largest > 0 ? 1.0f / largest : 0.0f);
    for (int i = 0; i < kGroup; i += 16) S::store(out->share[group] + i, S::mul(S::load_f16(scales + i), inverse));
  }
}

// Axis::out: slice by slice, a few rows at a time are multiplied by the scales of each pair of panels and rounded.
template <class A, int P, int together>
void multiply_rounded(const ProductTile& tile, int rows, Ahead& next) {
  constexpr int kPairs = P / 2;
  const Matrix& w = *tile.w;
  ScaleSlice scales[kPairs];
  Block rounded[kBand][kSlice];
  const int bands = divide_up(rows, kBand / kPairs);
  for (int first = 0; first < w.groups(); first += kSlice) {
    const int groups = smaller(w.groups() - first, kSlice);
    for (int pair = 0; pair < kPairs; ++pair) {
      fill_scales<A>(w.scales(tile.panel + 2 * pair) + first * kGroup, groups, scales + pair);
    }
    for (int i = 0, row = 0, height; i < bands; ++i, row += height) {
      height = divide_up(rows - row, bands - i);
      const size_t bytes = size_t{kGroupStep} * P * groups / bands;  // are fetched, a quarter of them while rounding
      for (int pair = 0; pair < kPairs; ++pair) {
        for (int r = 0; r < height; ++r) {
          const auto* x = reinterpret_cast<const ScaledBlock*>(tile.x + (row + r) * tile.x_stride);
          A::round(x + first, scales[pair], groups, rounded[pair * height + r]);
          next.take(bytes / 4 / (kPairs * height)).fetch_all();
        }
      }
      for (int p = 0; p < P; p += together) {
        const auto* x = reinterpret_cast<const uint8_t*>(rounded[p / 2 * height]);
        const ProductTile part = {tile.w,
                                  tile.panel + p,
                                  first,
                                  groups,
                                  x,
                                  sizeof rounded[0],
                                  height * sizeof rounded[0],
                                  tile.y + row * tile.y_stride + p * kPanel,
                                  tile.y_stride};
        multiply_column<A, Axis::out, together>(part, height, next.take(bytes * 3 / 4 / (P / together)));
      }
    }
  }
}

// Panels [tile.panel, end) times all rows: P at a time if so many are wanted, then what is left in halves.
template <class A, Axis axis, int P = panels_of<A>(1)>
void multiply_panels(ProductTile tile, int end, int wanted, int rows, Ahead& next) {
  if (P <= wanted) {
    for (; tile.panel + P <= end; tile.panel += P, tile.y += P * kPanel) {
      if constexpr (axis == Axis::in) {
        multiply_column<A, axis, P>(tile, rows, next.take(size_t{kGroupStep} * P * tile.groups));
      } else {
        multiply_rounded<A, P, P>(tile, rows, next);
      }
    }
  }
  if constexpr (P > (axis == Axis::in ? 1 : 2)) {
    multiply_panels<A, axis, P / 2>(tile, end, wanted, rows, next);
  } else if constexpr (axis == Axis::out) {  // a pair, one panel after the other
    for (; tile.panel < end; tile.panel += P, tile.y += P * kPanel) multiply_rounded<A, P, 1>(tile, rows, next);
  }
}

template <class A, Axis axis>
void matmul_int8(const Matrix& w, int begin, int end, const void* x, size_t x_stride, int rows, float* y,
                 size_t y_stride) {
  Ahead next{w.next, w.next + w.next_bytes};
  const int tallest = divide_up(rows, divide_up(rows, A::kRows));
  multiply_panels<A, axis>({&w, begin, 0, w.groups(), static_cast<const uint8_t*>(x), x_stride, 0, y, y_stride}, end,
                           panels_of<A>(tallest), rows, next);
}

}  // namespace mobilemoe::vector
