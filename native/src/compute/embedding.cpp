#include "compute/embedding.h"

#include "kernels/half.h"

namespace mobilemoe {

void read_row(const Matrix& matrix, int output, int count, float* weights) {
  const int panel = output / kPanel, lane = output % kPanel;
  const uint8_t* nibbles = matrix.nibbles(panel);
  const uint16_t* scales = matrix.scales(panel);
  for (int input = 0; input < count; ++input) {
    const int group = input / kGroup, i = input % kGroup;
    const uint8_t byte = nibbles[group * kGroupBytes + i / 8 * kRun + 4 * lane + i % 4];
    const int q = (i % 8 < 4 ? byte & 15 : byte >> 4) - 8;
    weights[input] = static_cast<float>(q) * half_to_float(scales[group * kPanel + lane]);
  }
}

}  // namespace mobilemoe
