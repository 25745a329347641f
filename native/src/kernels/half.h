// fp16 to fp32 and back in plain C++, as F16C and NEON do it (to nearest, ties to even). Not for files that are
// compiled for one instruction set: the linker keeps one copy of an inline function, which must run on every machine.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace mobilemoe {

inline float half_to_float(uint16_t half) {
  const int exponent = (half >> 10) & 31;
  const int fraction = half & 1023;
  float magnitude;
  if (exponent == 0) {
    magnitude = static_cast<float>(fraction) * 0x1p-24f;
  } else if (exponent == 31) {
    magnitude = fraction != 0 ? NAN : INFINITY;
  } else {
    const uint32_t bits = static_cast<uint32_t>(exponent + 112) << 23 | static_cast<uint32_t>(fraction) << 13;
    std::memcpy(&magnitude, &bits, sizeof bits);
  }
  return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

inline uint16_t float_to_half(float x) {
  const auto sign = static_cast<uint16_t>(std::signbit(x) ? 0x8000 : 0);
  const float magnitude = std::fabs(x);
  if (std::isnan(x)) return static_cast<uint16_t>(sign | 0x7e00);
  if (magnitude >= 65520.0f) return static_cast<uint16_t>(sign | 0x7c00);  // halfway above the greatest fp16
  if (magnitude < 0x1p-14f) return static_cast<uint16_t>(sign | static_cast<int>(std::rint(magnitude * 0x1p24f)));
  int exponent;
  std::frexp(magnitude, &exponent);                                                        // magnitude = 0.5 .. 1 * 2^e
  const int fraction = static_cast<int>(std::rint(std::ldexp(magnitude, 11 - exponent)));  // 1024 .. 2048
  return static_cast<uint16_t>(sign | (((exponent + 13) << 10) + fraction));  // a fraction of 2048 carries over
}

}  // namespace mobilemoe
