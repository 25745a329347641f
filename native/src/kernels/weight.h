// Probabilities as whole numbers, whose sums do not depend on the order of adding.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace mobilemoe {

// A weight of 1, that of the likeliest token. Sums of 2^19 weights fit into 64 bits.
constexpr uint64_t kOne = uint64_t{1} << 44;

// Tokens are sorted roughly by their weights into so many buckets, those of the highest weights first.
constexpr int kBuckets = 4096;

constexpr double kLowest = -46;  // binary logarithm of a weight: 2^-46 is less than half a unit
constexpr double kBucketWidth = -kLowest / (kBuckets - 1);  // in binary logarithms of weights
constexpr double kLog2E = 1.4426950408889634;

// 2^x for -46 <= x <= 0 in units of 1 / kOne, rounded to nearest. `Isa` does nothing but make the code of each
// instruction set a function of its own, which the linker must not merge. A polynomial within 2^-51 of 2^r for |r| <=
// 1/2; its even and odd powers are added side by side.
template <class Isa>
inline uint64_t weight_of(double x) {
  constexpr double kRound = 0x1.8p52;  // in a sum with it, the lowest bits are the nearest whole number
  constexpr double kUnits = 0x1.8p8;   // in a sum with it, the lowest bits are the nearest number of units
  const auto bits = [](double value) {
    uint64_t raw;
    static_assert(sizeof raw == sizeof value);
    __builtin_memcpy(&raw, &value, sizeof raw);
    return raw;
  };
  const double rounded = x + kRound;
  const double r = x - (rounded - kRound);
  const double square = r * r;
  double even = 7.072585949269223e-09, odd = 1.0208690299958306e-07;
  even = __builtin_fma(even, square, 1.321544258792169e-06);
  odd = __builtin_fma(odd, square, 1.5252657260200837e-05);
  even = __builtin_fma(even, square, 0.0001540353044173605);
  odd = __builtin_fma(odd, square, 0.0013333558230164974);
  even = __builtin_fma(even, square, 0.009618129107606888);
  odd = __builtin_fma(odd, square, 0.05550410866444772);
  even = __builtin_fma(even, square, 0.24022650695910097);
  odd = __builtin_fma(odd, square, 0.69314718055995);
  even = __builtin_fma(even, square, 1.0);
  const uint64_t power = bits(__builtin_fma(odd, r, even)) + (bits(rounded) << 52);  // the exponent plus x - r
  double weight;
  __builtin_memcpy(&weight, &power, sizeof weight);
  return bits(weight + kUnits) - bits(kUnits);
}

// `Kernels::weigh` for one instruction set. Its inner loops are so plain that compilers turn them into vectors: with
// both in one, GCC 12 does not.
template <class Isa>
inline uint64_t weigh(const float* scores, int count, const Weighing& weighing, uint64_t* weights, int16_t* buckets) {
  constexpr int kTogether = 64;
  const double log2_scale = weighing.scale * kLog2E, highest = weighing.highest;
  const double lowest = (static_cast<double>(weighing.lowest) - highest) * log2_scale;
  const double from = lowest > kLowest ? lowest : kLowest;
  uint64_t sum = 0;
  for (int first = 0; first < count; first += kTogether) {
    const int end = count - first < kTogether ? count - first : kTogether;
    double x[kTogether];
    for (int i = 0; i < end; ++i) {
      const double exponent = (static_cast<double>(scores[first + i]) - highest) * log2_scale;
      x[i] = exponent >= from ? exponent : kLowest;  // NaN becomes kLowest too
    }
    if (buckets != nullptr) {
      for (int i = 0; i < end; ++i) {
        buckets[first + i] = static_cast<int16_t>(static_cast<int32_t>(x[i] * ((kBuckets - 1) / kLowest)));
      }
    }
    for (int i = 0; i < end; ++i) {
      weights[first + i] = weight_of<Isa>(x[i]);
      sum += weights[first + i];
    }
  }
  return sum;
}

}  // namespace mobilemoe
