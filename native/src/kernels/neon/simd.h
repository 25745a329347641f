// The 16-lane vectors of kernels/vector/*.h on NEON, as four quarters. `Isa` does nothing but make the code of neon and
// of neon_i8mm different types, which the linker must not merge.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace mobilemoe::neon {

struct Floats {
  float32x4_t part[4];
};

struct Ints {
  int32x4_t part[4];
};

template <class Isa>
struct Simd {
  using F = Floats;  // 16 floats
  using I = Ints;    // 16 int32, or 64 bytes: 4 for each lane

  static F zero() { return set(0.0f); }
  static F set(float x) {
    const float32x4_t four = vdupq_n_f32(x);
    return {{four, four, four, four}};
  }
  static F load(const float* p) { return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}}; }
  static void store(float* p, F x) {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, x.part[i]);
  }
  static F load_f16(const uint16_t* p) {
    return each([&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
  }
  static void store_f16(uint16_t* p, F x) {
    for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.part[i])));
  }
  static F add(F a, F b) {
    return each([&](int i) { return vaddq_f32(a.part[i], b.part[i]); });
  }
  static F sub(F a, F b) {
    return each([&](int i) { return vsubq_f32(a.part[i], b.part[i]); });
  }
  static F mul(F a, F b) {
    return each([&](int i) { return vmulq_f32(a.part[i], b.part[i]); });
  }
  static F div(F a, F b) {
    return each([&](int i) { return vdivq_f32(a.part[i], b.part[i]); });
  }
  static F fma(F a, F b, F c) {
    return each([&](int i) { return vfmaq_f32(c.part[i], a.part[i], b.part[i]); });
  }
  static F max(F a, F b) {
    return each([&](int i) { return vmaxq_f32(a.part[i], b.part[i]); });
  }
  static F larger(F x, F best) {
    return each([&](int i) { return vbslq_f32(vcgtq_f32(x.part[i], best.part[i]), x.part[i], best.part[i]); });
  }
  static F min(F a, F b) {
    return each([&](int i) { return vminq_f32(a.part[i], b.part[i]); });
  }
  static F abs(F a) {
    return each([&](int i) { return vabsq_f32(a.part[i]); });
  }
  static F where(F x, F low, F a) {
    return each([&](int i) {
      return vreinterpretq_f32_u32(vandq_u32(vcgeq_f32(x.part[i], low.part[i]), vreinterpretq_u32_f32(a.part[i])));
    });
  }
  static uint32_t between(F x, F low, F high) {
    constexpr uint32_t kBits[4] = {1, 2, 4, 8};
    uint32_t bits = 0;
    for (int i = 0; i < 4; ++i) {
      const uint32x4_t is_one = vandq_u32(vcgeq_f32(x.part[i], low.part[i]), vcleq_f32(x.part[i], high.part[i]));
      bits |= vaddvq_u32(vandq_u32(is_one, vld1q_u32(kBits))) << (4 * i);
    }
    return bits;
  }
  static void store_places(uint32_t bits, int first, int* to) {
    for (; bits != 0; bits &= bits - 1) *to++ = first + __builtin_ctz(bits);
  }
  static float first(F a) { return vgetq_lane_f32(a.part[0], 0); }

  static I zero_i() { return set_i(0); }
  static I set_i(int32_t x) {
    const int32x4_t four = vdupq_n_s32(x);
    return {{four, four, four, four}};
  }
  static I load_i(const void* p) {
    const auto* bytes = static_cast<const int8_t*>(p);
    return each_i([&](int i) { return vreinterpretq_s32_s8(vld1q_s8(bytes + 16 * i)); });
  }
  static void store_i(void* p, I x) {
    for (int i = 0; i < 4; ++i) vst1q_s8(static_cast<int8_t*>(p) + 16 * i, vreinterpretq_s8_s32(x.part[i]));
  }
  static I add_i(I a, I b) {
    return each_i([&](int i) { return vaddq_s32(a.part[i], b.part[i]); });
  }
  static I and_i(I a, I b) {
    return each_i([&](int i) { return vandq_s32(a.part[i], b.part[i]); });
  }
  static I shift_left(I a, int bits) {
    return each_i([&](int i) { return vshlq_s32(a.part[i], vdupq_n_s32(bits)); });
  }
  static I shift_right(I a, int bits) {
    return each_i(
        [&](int i) { return vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(a.part[i]), vdupq_n_s32(-bits))); });
  }
  static F to_float(I a) {
    return each([&](int i) { return vcvtq_f32_s32(a.part[i]); });
  }
  static I round(F a) {
    return each_i([&](int i) { return vcvtnq_s32_f32(a.part[i]); });
  }
  static F as_float(I a) {
    return each([&](int i) { return vreinterpretq_f32_s32(a.part[i]); });
  }
  static void store_int8(int8_t* p, I a) {  // the low byte of each lane
    const int16x8_t first = vcombine_s16(vmovn_s32(a.part[0]), vmovn_s32(a.part[1]));
    const int16x8_t second = vcombine_s16(vmovn_s32(a.part[2]), vmovn_s32(a.part[3]));
    vst1q_s8(p, vcombine_s8(vmovn_s16(first), vmovn_s16(second)));
  }

  static I broadcast(const void* four_bytes) {
    int32_t x;
    __builtin_memcpy(&x, four_bytes, 4);
    return set_i(x);
  }
  static I dot(I acc, I small, I wide) {
    return each_i([&](int i) {
      return vdotq_s32(acc.part[i], vreinterpretq_s8_s32(small.part[i]), vreinterpretq_s8_s32(wide.part[i]));
    });
  }
  static constexpr bool kShiftedQuery = false;
  static uint8_t query_byte(int8_t q) { return static_cast<uint8_t>(q); }
  static I dot_query(I acc, I query, I wide) { return dot(acc, query, wide); }

 private:
  template <class Work>
  static F each(const Work& work) {
    return {{work(0), work(1), work(2), work(3)}};
  }
  template <class Work>
  static I each_i(const Work& work) {
    return {{work(0), work(1), work(2), work(3)}};
  }
};

}  // namespace mobilemoe::neon
