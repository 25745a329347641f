// An INT4 matrix in the order in which kernels read it: the nibbles and fp16 scales of the checkpoint, rearranged.
//
// A panel holds 16 outputs. For one panel and one group of 32 inputs there are 256 bytes, which are 4 runs of 64:
// byte 4 o + b of run r holds weights of output o, input 8 r + b in its low nibble and input 8 r + 4 + b in its high
// one, each as q + 8 (0..15), so that 4 neighbouring inputs of 16 outputs fill one 64-byte register of a dot product.
//
// Axis::in  (a scale for 32 inputs of one output): a panel is [groups][256] nibbles, then [groups][16] fp16 scales.
// Axis::out (a scale for 32 outputs of one input): panels come in pairs, [2][groups][256] nibbles, then
//           [groups][32] fp16 scales: one for each of the group's inputs, for all 32 outputs of the pair.
// Rows and inputs beyond the logical shape are zeros (nibble 8, scale 0).
#pragma once

#include <cstddef>
#include <cstdint>

namespace mobilemoe {

constexpr int kGroup = 32;                        // weights that share one scale
constexpr int kPanel = 16;                        // outputs side by side
constexpr int kRun = 64;                          // bytes of one run
constexpr int kGroupBytes = kPanel * kGroup / 2;  // nibbles of a panel's group

enum class Axis : uint8_t { in, out };

constexpr int divide_up(int a, int b) { return (a + b - 1) / b; }
constexpr int round_up(int value, int unit) { return divide_up(value, unit) * unit; }

struct Matrix {
  const uint8_t* data = nullptr;
  int outputs = 0;  // padded to a multiple of 16 (Axis::out: 32)
  int inputs = 0;   // padded to a multiple of 32
  Axis axis = Axis::in;
  // What the thread reads after a product with this matrix: kernels may bring it into L2 meanwhile.
  const uint8_t* next = nullptr;
  size_t next_bytes = 0;

  int panels() const { return outputs / kPanel; }
  int groups() const { return inputs / kGroup; }
  static size_t bytes(int outputs, int inputs) {
    return size_t{kGroupBytes + 2 * kPanel} * (outputs / kPanel) * (inputs / kGroup);
  }
  size_t bytes() const { return bytes(outputs, inputs); }

  // The same matrix, after which panels [begin, end) of another one are read. They may reach beyond its end.
  Matrix before(const Matrix& other, int begin, int end) const {
    if (begin > other.panels()) begin = other.panels();
    if (end > other.panels()) end = other.panels();
    Matrix matrix = *this;
    matrix.next = other.data + bytes(begin * kPanel, other.inputs);
    matrix.next_bytes = bytes((end - begin) * kPanel, other.inputs);
    return matrix;
  }

  const uint8_t* nibbles(int panel) const {
    const size_t group_bytes = size_t{kGroupBytes} * groups();
    const size_t scale_bytes = size_t{2 * kPanel} * groups();
    if (axis == Axis::in) return data + panel * (group_bytes + scale_bytes);
    return data + panel / 2 * 2 * (group_bytes + scale_bytes) + panel % 2 * group_bytes;
  }
  // Axis::in: [groups][16] of this panel. Axis::out: [groups][32] of this panel's pair.
  const uint16_t* scales(int panel) const {
    const size_t group_bytes = size_t{kGroupBytes} * groups();
    const uint8_t* at = axis == Axis::in ? nibbles(panel) + group_bytes : nibbles(panel & ~1) + 2 * group_bytes;
    return reinterpret_cast<const uint16_t*>(at);
  }
};

// down(silu(gate(x)) * up(x)). gate_up holds 32 rows of gate, then 32 of up, in turn; width is padded to 32.
struct Ffn {
  Matrix gate_up;  // [2 width, hidden]
  Matrix down;     // [hidden, width]
  int width = 0;
};

}  // namespace mobilemoe
