// The table of AMX is that of AVX-512 except for products of many int8 rows.
#pragma once

#include <initializer_list>

#include "kernels/amx/blocks.h"
#include "kernels/tables.h"

namespace mobilemoe::amx {

template <class Tiles, Form form>
void matmul_int8(const Matrix& w, int begin, int end, const void* x, size_t x_stride, int rows, float* y,
                 size_t y_stride) {
  constexpr Axis axis = form == Form::blocks ? Axis::in : Axis::out;
  const auto product = rows < kFewestRows ? avx512::kernels()->matmul[form] : matmul<Tiles, axis>;
  product(w, begin, end, x, x_stride, rows, y, y_stride);
}

// Four tiles of 16 x 16 sums, which do not depend on each other.
template <class Tiles>
double multiply_adds() {
  constexpr int kSize = 16, kRounds = 256, kProducts = 4 * kSize * kSize * 4 * kSize;
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.rows[tile] = kSize;
    config.row_bytes[tile] = 4 * kSize;
  }
  Tiles::configure(config);
  Tiles::template zero<0>(), Tiles::template zero<1>(), Tiles::template zero<2>(), Tiles::template zero<3>();
  Tiles::template zero<4>(), Tiles::template zero<5>(), Tiles::template zero<6>(), Tiles::template zero<7>();
  for (int round = 0; round < kRounds; ++round) {
    Tiles::template dot<0, 4, 6>();
    Tiles::template dot<1, 4, 7>();
    Tiles::template dot<2, 5, 6>();
    Tiles::template dot<3, 5, 7>();
  }
  Tiles::release();
  return static_cast<double>(kProducts) * kRounds;
}

template <class Tiles>
Kernels table() {
  Kernels table = *avx512::kernels();
  table.isa = "amx";
  table.matmul[Form::blocks] = matmul_int8<Tiles, Form::blocks>;
  table.matmul[Form::scaled] = matmul_int8<Tiles, Form::scaled>;
  table.multiply_adds = multiply_adds<Tiles>;
  return table;
}

// Whether a table gives the products of AVX-512, bit for bit, for two blocks of 7 and 6 rows, two slices and three
// panels.
inline bool is_exact(const Kernels& table) {
  constexpr int groups = kSliceGroups + 1, panels = 4, rows = 13, inputs = groups * kGroup, outputs = panels * kPanel;
  static uint8_t weights[panels * groups * (kGroupBytes + 2 * kPanel)];
  static float values[rows * inputs];
  static ScaledBlock x[rows * groups];  // large enough for either form
  static float y[2][rows * outputs];
  uint32_t seed = 1;
  for (uint8_t& byte : weights) byte = static_cast<uint8_t>((seed = seed * 1664525u + 1013904223u) >> 24);
  for (float& value : values) {
    seed = seed * 1664525u + 1013904223u;
    value = static_cast<float>(seed >> 8) / static_cast<float>(1 << 23) - 1;
  }
  for (const Form form : {Form::blocks, Form::scaled}) {
    const Axis axis = form == Form::blocks ? Axis::in : Axis::out;
    const Matrix w = {weights, outputs, inputs, axis};
    for (int panel = 0; panel < panels; panel += axis == Axis::in ? 1 : 2) {
      uint8_t* scales = weights + (reinterpret_cast<const uint8_t*>(w.scales(panel)) - weights);
      for (int i = 0; i < groups * kPanel * (axis == Axis::in ? 1 : 2); ++i) {
        const uint16_t scale = static_cast<uint16_t>(0x2400 + i % 1024);  // 2^-6 .. 2^-5
        __builtin_memcpy(scales + 2 * i, &scale, sizeof scale);
      }
    }
    const size_t stride = groups * form_bytes(form);
    auto* prepared = reinterpret_cast<uint8_t*>(x);
    for (int row = 0; row < rows; ++row) {
      table.prepare[form](values + row * inputs, inputs, prepared + row * stride);
    }
    const int end = axis == Axis::in ? panels - 1 : panels;
    table.matmul[form](w, 0, end, x, stride, rows, y[0], outputs);
    avx512::kernels()->matmul[form](w, 0, end, x, stride, rows, y[1], outputs);
    if (__builtin_memcmp(y[0], y[1], sizeof y[0]) != 0) return false;
  }
  return true;
}

}  // namespace mobilemoe::amx
