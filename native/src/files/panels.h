// Converts nibbles and scales from the order of a checkpoint to that of Matrix, a panel at a time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "model/matrix.h"

namespace mobilemoe {

// Stored INT4 rows: groups of 32 neighbours along a row share a scale; two nibbles in a byte, the even one low, in
// two's complement; fp16 scales. Rows are outputs for Axis::in and inputs for Axis::out. Of any alignment.
struct Packed {
  const uint8_t* nibbles = nullptr;
  const uint8_t* scales = nullptr;
  int columns = 0;

  const uint8_t* row_nibbles(int row) const { return nibbles + row * nibble_stride(); }
  const uint8_t* row_scales(int row) const { return scales + row * scale_stride(); }
  size_t nibble_stride() const { return columns / 2; }
  size_t scale_stride() const { return columns / kGroup * 2; }
  Packed from_row(size_t row) const {
    return {nibbles + row * nibble_stride(), scales + row * scale_stride(), columns};
  }
};

// One output's inputs; null for a row of padding.
struct PackedRow {
  const uint8_t* nibbles = nullptr;
  const uint8_t* scales = nullptr;
};

constexpr size_t panel_bytes(int groups) { return size_t{kGroupBytes + 2 * kPanel} * groups; }

// A panel of an Axis::in matrix from its 16 outputs: panel_bytes(groups) bytes.
void fill_panel(const PackedRow rows[kPanel], int groups, uint8_t* out);

// A pair of panels of an Axis::out matrix from columns 32 column_group .. + 31 of `rows`, one row for each input:
// 2 * panel_bytes(groups) bytes.
void fill_pair(const Packed& rows, int column_group, int groups, uint8_t* out);

}  // namespace mobilemoe
