#include "files/panels.h"

#include <cstring>

namespace mobilemoe {
namespace {

// Flipping the top bit turns two's complement -8..7 into q + 8, 0..15.
constexpr uint64_t kOffset = 0x8888888888888888;

uint64_t load64(const uint8_t* from) {
  uint64_t out;
  std::memcpy(&out, from, sizeof out);
  return out;
}

// Exchanges the bits of x under `mask` with those `shift` places above.
uint64_t swap_bits(uint64_t x, uint64_t mask, int shift) {
  const uint64_t changed = (x ^ (x >> shift)) & mask;
  return x ^ changed ^ (changed << shift);
}

// In each half, the nibbles of inputs 0 1 2 3 4 5 6 7 become 0 4 1 5 2 6 3 7.
uint64_t interleave_nibbles(uint64_t x) {
  x = swap_bits(x, 0x0000FF000000FF00, 8);
  return swap_bits(x, 0x00F000F000F000F0, 4);
}

// In each half (the rows are outputs 0..3 and 4..7), byte j of row b becomes byte b of row j.
void transpose_bytes(uint64_t rows[4]) {
  constexpr uint64_t kEven = 0x00FF00FF00FF00FF, kLow = 0x0000FFFF0000FFFF;
  const uint64_t a = (rows[0] & kEven) | (rows[1] & kEven) << 8, b = (rows[0] >> 8 & kEven) | (rows[1] & ~kEven);
  const uint64_t c = (rows[2] & kEven) | (rows[3] & kEven) << 8, d = (rows[2] >> 8 & kEven) | (rows[3] & ~kEven);
  rows[0] = (a & kLow) | (c & kLow) << 16;
  rows[1] = (b & kLow) | (d & kLow) << 16;
  rows[2] = (a >> 16 & kLow) | (c & ~kLow);
  rows[3] = (b >> 16 & kLow) | (d & ~kLow);
}

// Makes one run in each of two neighbouring panels from the nibbles of 8 inputs, which are `stride` bytes apart and
// hold 32 outputs each.
void fill_runs(const uint8_t* rows, size_t stride, uint8_t* out, size_t panel_stride) {
  constexpr uint64_t kLowNibbles = 0x0F0F0F0F0F0F0F0F;
  for (size_t panel = 0; panel < 2; ++panel) {
    uint64_t even[4], odd[4];  // byte j: outputs 2 j and 2 j + 1, inputs b and b + 4
    for (size_t b = 0; b < 4; ++b) {
      const uint64_t low = load64(rows + b * stride + 8 * panel);
      const uint64_t high = load64(rows + (b + 4) * stride + 8 * panel);
      even[b] = ((low & kLowNibbles) | (high & kLowNibbles) << 4) ^ kOffset;
      odd[b] = ((low >> 4 & kLowNibbles) | (high & ~kLowNibbles)) ^ kOffset;
    }
    transpose_bytes(even);
    transpose_bytes(odd);
    for (size_t j = 0; j < 4; ++j) {
      const uint64_t first = (even[j] & 0xFFFFFFFF) | odd[j] << 32;           // outputs 2 j and 2 j + 1
      const uint64_t second = even[j] >> 32 | (odd[j] & 0xFFFFFFFF00000000);  // the same + 8
      std::memcpy(out + panel * panel_stride + 8 * j, &first, 8);
      std::memcpy(out + panel * panel_stride + 32 + 8 * j, &second, 8);
    }
  }
}

}  // namespace

void fill_panel(const PackedRow rows[kPanel], int groups, uint8_t* out) {
  const size_t group_count = groups;
  uint8_t* scales = out + group_count * kGroupBytes;
  for (size_t o = 0; o < kPanel; ++o) {
    const PackedRow& row = rows[o];
    for (size_t group = 0; group < group_count; ++group) {
      uint8_t* to = out + group * kGroupBytes + 4 * o;
      for (size_t half = 0; half < 2; ++half) {
        const uint64_t stored = row.nibbles == nullptr ? 0 : load64(row.nibbles + group * kGroup / 2 + 8 * half);
        const uint64_t two_runs = interleave_nibbles(stored) ^ kOffset;
        const auto first = static_cast<uint32_t>(two_runs), second = static_cast<uint32_t>(two_runs >> 32);
        std::memcpy(to + 2 * half * kRun, &first, 4);
        std::memcpy(to + (2 * half + 1) * kRun, &second, 4);
      }
      const uint8_t zero[2] = {0, 0};
      std::memcpy(scales + 2 * (group * kPanel + o), row.scales == nullptr ? zero : row.scales + 2 * group, 2);
    }
  }
}

void fill_pair(const Packed& rows, int column_group, int groups, uint8_t* out) {
  const size_t panel_stride = size_t{kGroupBytes} * groups;
  const size_t nibble_stride = rows.nibble_stride(), scale_stride = rows.scale_stride();
  const uint8_t* nibbles = rows.nibbles + column_group * (kGroup / 2);
  const uint8_t* scales = rows.scales + column_group * 2;
  const size_t inputs = size_t{kGroup} * groups;
  for (size_t input = 0; input < inputs; input += 8) {
    fill_runs(nibbles + input * nibble_stride, nibble_stride, out + input / 8 * kRun, panel_stride);
  }
  for (size_t input = 0; input < inputs; ++input) {
    std::memcpy(out + 2 * panel_stride + 2 * input, scales + input * scale_stride, 2);
  }
}

}  // namespace mobilemoe
