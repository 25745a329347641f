// Where the parts of a block of keys and values lie (see kernels.h). The functions are static: every instruction set
// compiles its own copy of them.
#pragma once

#include "kernels/kernels.h"

namespace mobilemoe {

constexpr int kMaxHeadDim = 256;

// int8: offsets in bytes; k begins at 0.
struct KvInt8Layout {
  int quads;  // head_dim / 4, rounded up
  int width;  // head_dim rounded up to 16
  size_t v, k_scale, v_scale, k_offset, bytes;
};

static constexpr KvInt8Layout kv_int8_layout(int head_dim) {
  const int quads = round_up(head_dim, 4) / 4, width = round_up(head_dim, 16);
  const size_t v = size_t{4 * kKvBlock} * quads;
  const size_t scales = v + size_t{kKvBlock} * width;
  constexpr size_t row = sizeof(float) * kKvBlock;
  return {quads, width, v, scales, scales + row, scales + 2 * row, scales + 3 * row};
}

// f16 and f32: offsets in elements; k begins at 0.
struct KvFloatLayout {
  int width;  // head_dim rounded up to 16
  size_t v, elements;
};

static constexpr KvFloatLayout kv_float_layout(int head_dim) {
  const int width = round_up(head_dim, 16);
  const size_t v = size_t{kKvBlock} * head_dim;
  return {width, v, v + size_t{kKvBlock} * width};
}

static constexpr size_t kv_block_bytes(KvType type, int head_dim) {
  if (type == KvType::int8) return kv_int8_layout(head_dim).bytes;
  return kv_float_layout(head_dim).elements * (type == KvType::f16 ? sizeof(uint16_t) : sizeof(float));
}

}  // namespace mobilemoe
