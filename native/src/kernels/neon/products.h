// INT4 x INT8 products on NEON: panels times the units of rows of a struct Dot (dot.h), whose float sums stay in
// registers for all groups.
#pragma once

#include <arm_neon.h>

#include "kernels/neon/dot.h"
#include "kernels/vector/tiles.h"

namespace mobilemoe::neon {

using vector::Ahead;

constexpr int kMostUnits = 8;      // of rows that are multiplied at once
constexpr int kMostSums = 16;      // registers of float sums
constexpr int kInputGroups = 256;  // packed groups of all units on the stack at a time

// What is multiplied at once, and where the products go.
struct Tile {
  const uint8_t* nibbles;
  const uint8_t* scales;  // fp16, of the outputs, if kHasScales; otherwise null, as the inputs' scales include them
  size_t panel_bytes;     // from one panel's nibbles, or scales, to the next one's
  int groups;
  float* y;
  size_t y_stride;
  int rows;
  bool is_first;  // otherwise the sums are added to those in y
};

// Makes the compiler finish `sum` before it reads the inputs of the next unit. It would begin with all units at once,
// for which there are too few registers.
template <int kUnits>
inline __attribute__((always_inline)) void finish(float32x4_t& sum) {
  if constexpr (kUnits > 1) {
    __asm__ volatile("" : "+w"(sum) : : "memory");
  } else {
    __asm__("" : "+w"(sum));
  }
}

// kQuarters quarters of kPanels panels, from `quarter` on, times kUnits units; meanwhile, as many bytes of `next` are
// brought into L2.
template <class Dot, bool kHasScales, int kPanels, int kQuarters, int kUnits>
__attribute__((noinline)) void multiply_quarters(const Tile& whole, int quarter, const typename Dot::Inputs* x,
                                                 Ahead& next) {
  constexpr int kAll = kPanels * kQuarters;
  const Tile tile = whole;  // in registers: what is behind a reference would be loaded again for every group
  const auto output = [&](int all, int unit) __attribute__((always_inline)) {
    return tile.y + unit * Dot::kRows * tile.y_stride + all / kQuarters * kPanel + (quarter + all % kQuarters) * 4;
  };
  const uint8_t* nibbles[kPanels];
  const uint8_t* scales[kPanels];
  unroll<kPanels>([&](auto panel) __attribute__((always_inline)) {
    nibbles[panel] = tile.nibbles + panel * tile.panel_bytes + quarter * 16;
    if (kHasScales) scales[panel] = tile.scales + panel * tile.panel_bytes + quarter * 8;
  });
  typename Dot::Sums sum[kAll][kUnits];
  unroll<kAll * kUnits>([&](auto i) __attribute__((always_inline)) {
    constexpr int all = i / kUnits, unit = i % kUnits;
    unroll<Dot::kVectors>([&](auto v) __attribute__((always_inline)) { sum[all][unit][v] = vdupq_n_f32(0); });
    if (!tile.is_first) Dot::load(output(all, unit), tile.y_stride, tile.rows - unit * Dot::kRows, sum[all][unit]);
  });
  Ahead ahead = next;
  for (int group = 0; group < tile.groups; ++group, x += kUnits) {
    ahead.fetch<kAll * vector::kGroupStep / 4>();
    unroll<kAll>([&](auto all) __attribute__((always_inline)) {
      constexpr int panel = all / kQuarters, here = all % kQuarters;
      const auto weights = Dot::split(nibbles[panel] + here * 16);
      typename Dot::Sums by_output;
      if (kHasScales) {
        const auto* four = reinterpret_cast<const uint16_t*>(scales[panel]) + here * 4;
        Dot::by_output(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(four))), by_output);
      }
      unroll<kUnits>([&](auto unit) __attribute__((always_inline)) {
        int32x4_t dot[Dot::kVectors];
        Dot::multiply(x[unit], weights, dot);
        const float32x4_t scale = Dot::scale(x[unit]);
        unroll<Dot::kVectors>([&](auto v) __attribute__((always_inline)) {
          float32x4_t& to = sum[all][unit][v];
          to = vfmaq_f32(to, vcvtq_f32_s32(dot[v]), kHasScales ? vmulq_f32(by_output[v], scale) : scale);
          finish<kUnits>(to);
        });
      });
      if constexpr (here == kQuarters - 1) {
        nibbles[panel] += kGroupBytes;
        if (kHasScales) scales[panel] += 2 * kPanel;
      }
    });
  }
  next = ahead;
  unroll<kAll * kUnits>([&](auto i) __attribute__((always_inline)) {
    constexpr int all = i / kUnits, unit = i % kUnits;
    Dot::store(output(all, unit), tile.y_stride, tile.rows - unit * Dot::kRows, sum[all][unit]);
  });
}

template <class Dot, bool kHasScales, int kPanels, int kUnits>
inline void multiply_panels(const Tile& tile, const typename Dot::Inputs* x, Ahead& next) {
  constexpr int kFit = kMostSums / (kPanels * kUnits * Dot::kVectors);
  constexpr int kQuarters = kFit >= 4 ? 4 : kFit >= 2 ? 2 : 1;
  for (int quarter = 0; quarter < 4; quarter += kQuarters)
    multiply_quarters<Dot, kHasScales, kPanels, kQuarters, kUnits>(tile, quarter, x, next);
}

// `panels` panels from tile.nibbles on. With few rows, for which memory is the limit, several are multiplied at once:
// they are as many streams from memory.
template <class Dot, bool kHasScales, int kUnits>
inline void multiply(Tile tile, int panels, const typename Dot::Inputs* x, Ahead& next) {
  constexpr int kFit = kMostSums / (4 * kUnits * Dot::kVectors);
  constexpr int kStreams = kFit >= 4 && kHasScales ? 4 : kFit >= 2 ? 2 : 1;
  const auto take = [&](auto together) {
    multiply_panels<Dot, kHasScales, together, kUnits>(tile, x, next);
    tile.nibbles += together * tile.panel_bytes;
    if (kHasScales) tile.scales += together * tile.panel_bytes;
    tile.y += together * kPanel;
    return together;
  };
  while (panels >= kStreams) panels -= take(Count<kStreams>());
  while (panels > 0) panels -= take(Count<1>());
}

// The same for a number of units that is only known now.
template <class Dot, bool kHasScales, int kUnits = kMostUnits>
inline void multiply_units(int units, const Tile& tile, int panels, const typename Dot::Inputs* x, Ahead& next) {
  if constexpr (kUnits > 1) {
    if (units < kUnits) return multiply_units<Dot, kHasScales, kUnits - 1>(units, tile, panels, x, next);
  }
  multiply<Dot, kHasScales, kUnits>(tile, panels, x, next);
}

// Calls work(first row, rows, units, first group, groups) for every part of the inputs that is packed at once.
template <class Dot, class Work>
inline void for_each_part(const Matrix& w, int rows, const Work& work) {
  constexpr int kMostRows = kMostUnits * Dot::kRows;
  for (int row = 0; row < rows; row += kMostRows) {
    const int here = rows - row < kMostRows ? rows - row : kMostRows, units = divide_up(here, Dot::kRows);
    const int step = kInputGroups / units;
    for (int first = 0; first < w.groups(); first += step)
      work(row, here, units, first, w.groups() - first < step ? w.groups() - first : step);
  }
}

// Packs one group of all rows; a unit's rows beyond the last one are zeros.
template <class Dot, class GroupOf>
inline void pack_group(int rows, int units, const GroupOf& group_of, typename Dot::Inputs* x) {
  for (int unit = 0; unit < units; ++unit) {
    Group groups[Dot::kRows];
    unroll<Dot::kRows>([&](auto i) {
      const int row = unit * Dot::kRows + i;
      groups[i] = row < rows ? group_of(row) : Group{{vdupq_n_s8(0), vdupq_n_s8(0)}, 0, 0};
    });
    Dot::pack(groups, x + unit);
  }
}

template <class Dot>
void matmul_blocks(const Matrix& w, int begin, int end, const void* x, size_t x_stride, int rows, float* y,
                   size_t y_stride) {
  typename Dot::Inputs inputs[kInputGroups];
  Ahead next{w.next, w.next + w.next_bytes};
  for_each_part<Dot>(w, rows, [&](int row, int here, int units, int first, int groups) {
    const uint8_t* in = static_cast<const uint8_t*>(x) + row * x_stride;
    for (int group = 0; group < groups; ++group) {
      const auto load = [&](int r) {
        const Block& block = reinterpret_cast<const Block*>(in + r * x_stride)[first + group];
        return Group{{vld1q_s8(block.q), vld1q_s8(block.q + 16)}, block.scale, block.offset};
      };
      pack_group<Dot>(here, units, load, inputs + group * units);
    }
    const auto* scales = reinterpret_cast<const uint8_t*>(w.scales(begin) + first * kPanel);
    const size_t panel_bytes = Matrix::bytes(kPanel, w.inputs);
    multiply_units<Dot, true>(units,
                              {w.nibbles(begin) + size_t{kGroupBytes} * first, scales, panel_bytes, groups,
                               y + row * y_stride, y_stride, here, first == 0},
                              end - begin, inputs, next);
  });
}

// The scales of 32 inputs of a pair of panels, divided by the largest one.
template <class Isa>
struct InputScales {
  float32x4_t share[8];
  float largest;

  explicit InputScales(const uint16_t* scales) {
    // Without their sign bits, fp16 numbers have the same order as integers.
    uint16x8_t most = vdupq_n_u16(0);
    unroll<4>([&](auto i) { most = vmaxq_u16(most, vandq_u16(vld1q_u16(scales + 8 * i), vdupq_n_u16(0x7fff))); });
    largest = vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(vmaxvq_u16(most)))), 0);
    const float inverse = largest > 0 ? 1.0f / largest : 0.0f;
    unroll<8>(
        [&](auto i) { share[i] = vmulq_n_f32(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(scales + 4 * i))), inverse); });
  }

  Group round(const ScaledBlock& x) const {
    Group group;
    const auto four = [&](int i) {
      return vreinterpretq_s16_s32(vcvtnq_s32_f32(vmulq_f32(vld1q_f32(x.v + 4 * i), share[i])));
    };
    unroll<2>([&](auto half) {  // the low halves of int32, then of int16: all are within -127 .. 127
      const int16x8_t low = vuzp1q_s16(four(4 * half), four(4 * half + 1));
      const int16x8_t high = vuzp1q_s16(four(4 * half + 2), four(4 * half + 3));
      group.q[half] = vuzp1q_s8(vreinterpretq_s8_s16(low), vreinterpretq_s8_s16(high));
    });
    const int8x16_t one = vdupq_n_s8(1);
    group.offset = -8 * vaddvq_s32(vdotq_s32(vdotq_s32(vdupq_n_s32(0), group.q[0], one), group.q[1], one));
    group.scale = largest * x.scale;
    return group;
  }
};

template <class Dot, class Isa>
void matmul_scaled(const Matrix& w, int begin, int end, const void* x, size_t x_stride, int rows, float* y,
                   size_t y_stride) {
  typename Dot::Inputs inputs[kInputGroups];
  Ahead next{w.next, w.next + w.next_bytes};
  for (int panel = begin; panel < end; panel += 2, y += 2 * kPanel) {
    const uint16_t* scales = w.scales(panel);
    for_each_part<Dot>(w, rows, [&](int row, int here, int units, int first, int groups) {
      const uint8_t* in = static_cast<const uint8_t*>(x) + row * x_stride;
      for (int group = 0; group < groups; ++group) {
        const InputScales<Isa> of_inputs(scales + (first + group) * kGroup);
        const auto round = [&](int r) {
          return of_inputs.round(reinterpret_cast<const ScaledBlock*>(in + r * x_stride)[first + group]);
        };
        pack_group<Dot>(here, units, round, inputs + group * units);
      }
      multiply_units<Dot, false>(
          units,
          {w.nibbles(panel) + size_t{kGroupBytes} * first, nullptr, size_t{kGroupBytes} * w.groups(), groups,
           y + row * y_stride, y_stride, here, first == 0},
          2, inputs, next);
    });
  }
}

}  // namespace mobilemoe::neon
