// Random inputs for the kernels, awkward ones included, and comparisons bit for bit.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "kernels/dispatch.h"

namespace mobilemoe::grid {

constexpr Form kForms[] = {Form::blocks, Form::scaled, Form::floats};

inline const Kernels& reference() { return *find_kernels("scalar"); }

// Calls check(kernels) for every instruction set of this machine; a failure names it.
template <class Check>
void for_each_isa(const Check& check) {
  for (const char* const* isa = available_kernels(); *isa != nullptr; ++isa) {
    try {
      check(*find_kernels(*isa));
    } catch (check::Failure& failure) {
      failure.what += " (" + std::string(*isa) + ")";
      throw;
    }
  }
}

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  unsigned below(unsigned limit) { return static_cast<unsigned>(engine_() % limit); }
  float uniform(float low, float high) {
    return low + (high - low) * static_cast<float>(engine_() >> 8) / static_cast<float>(1 << 24);
  }
  // Groups of 32 of very different size, some of them zero.
  std::vector<float> activations(size_t count) {
    static constexpr float kSizes[] = {1.0f, 1.0f, 1.0f, 0.0f, 1e-20f, 1e15f, 3e-3f, 40.0f};
    std::vector<float> x(count);
    float size = 1;
    for (size_t i = 0; i < count; ++i) {
      if (i % kGroup == 0) size = kSizes[below(8)];
      x[i] = size * uniform(-1, 1);
    }
    return x;
  }
  // Usual scales, zeros, and now and then any finite fp16: subnormal, huge or negative.
  uint16_t scale() {
    const unsigned kind = below(16);
    if (kind == 0) return 0;
    if (kind > 2) return static_cast<uint16_t>(0x1c00 + below(0x1000));  // 2^-8 .. 2^-4
    return static_cast<uint16_t>(below(0x7c00) | below(2) << 15);
  }

 private:
  std::mt19937 engine_;
};

struct OwnedMatrix {
  std::vector<uint8_t> bytes;
  Matrix matrix;
};

inline OwnedMatrix random_matrix(Random& random, Axis axis, int panels, int groups) {
  OwnedMatrix owned;
  Matrix& w = owned.matrix;
  w.outputs = panels * kPanel;
  w.inputs = groups * kGroup;
  w.axis = axis;
  owned.bytes.resize(w.bytes());
  for (uint8_t& byte : owned.bytes) byte = static_cast<uint8_t>(random.below(256));
  w.data = owned.bytes.data();
  const int step = axis == Axis::in ? 1 : 2;
  for (int panel = 0; panel < panels; panel += step) {
    auto* scales = owned.bytes.data() + (reinterpret_cast<const uint8_t*>(w.scales(panel)) - w.data);
    const int per_group = kPanel * step;
    for (int group = 0; group < groups; ++group) {
      const bool is_zero = random.below(12) == 0;
      for (int i = 0; i < per_group; ++i) {
        const uint16_t scale = is_zero ? uint16_t{0} : random.scale();
        std::memcpy(scales + 2 * (group * per_group + i), &scale, 2);
      }
    }
  }
  return owned;
}

// Rows of `inputs` floats in prepared form, `stride` bytes apart.
inline std::vector<uint8_t> prepared(const Kernels& kernels, Form form, const std::vector<float>& x, int inputs,
                                     size_t stride) {
  const size_t rows = x.size() / static_cast<size_t>(inputs);
  std::vector<uint8_t> out(rows * stride);
  for (size_t row = 0; row < rows; ++row)
    kernels.prepare[form](x.data() + row * static_cast<size_t>(inputs), inputs, out.data() + row * stride);
  return out;
}

template <class T>
void check_same_bytes(const std::vector<T>& got, const std::vector<T>& wanted, const std::string& what) {
  if (got.size() != wanted.size()) throw check::Failure{what + ": another size"};
  for (size_t i = 0; i < got.size(); ++i)
    if (std::memcmp(&got[i], &wanted[i], sizeof(T)) != 0)
      throw check::Failure{what + ": element " + std::to_string(i) + " is " + check::text(got[i]) + ", not " +
                           check::text(wanted[i])};
}

}  // namespace mobilemoe::grid
