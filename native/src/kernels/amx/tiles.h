// The instructions of AMX that the products use. tests/kernels/amx_emulated.cpp has the same struct on plain arrays.
//
// Inline assembly instead of intrinsics: GCC 12 tells the optimizer that _tile_loadconfig reads 8 of its 64 bytes, and
// that tile loads and stores touch no memory at all.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mobilemoe::amx {

// What LDTILECFG reads: the shape of each tile.
struct TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t unused[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

struct HardwareTiles {
  static void configure(const TileConfig& config) { __asm__ volatile("ldtilecfg %0" ::"m"(config)); }
  static void release() { __asm__ volatile("tilerelease" ::: "memory"); }

  template <int tile>
  static void zero() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(tile));
  }
  template <int tile>
  static void load(const void* from, size_t stride) {
    __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(tile), "r"(from), "r"(stride) : "memory");
  }
  template <int tile>
  static void store(void* to, size_t stride) {
    __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(tile), "r"(to), "r"(stride) : "memory");
  }
  // c[m][n] += the sum over k and b of a[m][4 k + b] * b[k][4 n + b]; int8 times int8.
  template <int c, int a, int b>
  static void dot() {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
  }
};

}  // namespace mobilemoe::amx
