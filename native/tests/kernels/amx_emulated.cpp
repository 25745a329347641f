// AMX kernels whose tiles are plain arrays, for machines without AMX. Compiled with the flags of AVX-512, so it must
// not include anything whose inline functions the other tests share.
#if defined(__x86_64__)

#include "kernels/amx_emulated.h"

#include "kernels/amx/table.h"

namespace mobilemoe::amx {
namespace {

// Traps where the processor would fault: a shape out of range, or tiles whose shapes do not fit each other.
// `damage` is added to one element of each sum, as a broken processor might.
template <int damage>
struct EmulatedTiles {
  static inline thread_local TileConfig config_;
  static inline thread_local int8_t data_[8][16][64];
  static inline thread_local bool is_configured_ = false;

  static void require(bool condition) {
    if (!condition) __builtin_trap();
  }

  static void configure(const TileConfig& config) {
    require(config.palette == 1 && config.start_row == 0);
    for (int i = 0; i < 16; ++i) {
      require(config.rows[i] <= 16 && config.row_bytes[i] <= 64 && (i < 8 || config.rows[i] == 0));
      require((config.rows[i] == 0) == (config.row_bytes[i] == 0));
    }
    config_ = config;
    is_configured_ = true;
    __builtin_memset(data_, 0, sizeof data_);
  }
  static void release() { is_configured_ = false; }

  template <int tile>
  static void zero() {
    require(is_configured_ && config_.rows[tile] > 0);
    __builtin_memset(data_[tile], 0, sizeof data_[tile]);
  }
  template <int tile>
  static void load(const void* from, size_t stride) {
    zero<tile>();
    for (int row = 0; row < config_.rows[tile]; ++row)
      __builtin_memcpy(data_[tile][row], static_cast<const char*>(from) + row * stride, config_.row_bytes[tile]);
  }
  template <int tile>
  static void store(void* to, size_t stride) {
    require(is_configured_ && config_.rows[tile] > 0);
    for (int row = 0; row < config_.rows[tile]; ++row)
      __builtin_memcpy(static_cast<char*>(to) + row * stride, data_[tile][row], config_.row_bytes[tile]);
  }
  template <int c, int a, int b>
  static void dot() {
    require(is_configured_ && c != a && c != b && a != b);
    require(config_.rows[c] == config_.rows[a] && config_.row_bytes[c] == config_.row_bytes[b]);
    require(config_.row_bytes[a] == 4 * config_.rows[b] && config_.row_bytes[c] % 4 == 0);
    for (int m = 0; m < config_.rows[c]; ++m)
      for (int n = 0; n < config_.row_bytes[c] / 4; ++n) {
        int32_t sum;
        __builtin_memcpy(&sum, data_[c][m] + 4 * n, 4);
        for (int k = 0; k < config_.rows[b]; ++k)
          for (int i = 0; i < 4; ++i) sum += data_[a][m][4 * k + i] * data_[b][k][4 * n + i];
        if (m == 3 && n == 5) sum += damage;
        __builtin_memcpy(data_[c][m] + 4 * n, &sum, 4);
      }
  }
};

}  // namespace

bool emulated_is_exact() { return is_exact(table<EmulatedTiles<0>>()); }
bool damaged_is_exact() { return is_exact(table<EmulatedTiles<1>>()); }

const Kernels* emulated_kernels() {
  static const Kernels instance = table<EmulatedTiles<0>>();
  return &instance;
}
bool emulated_tiles_are_released() { return !EmulatedTiles<0>::is_configured_; }

}  // namespace mobilemoe::amx

#endif
