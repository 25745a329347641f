#include "compute/capacity.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "compute/rows.h"

namespace mobilemoe {
namespace {

// A number without a pattern (the last steps of splitmix64).
uint64_t scramble(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

}  // namespace

void Capacity::skip(int layer, int rows, const uint8_t* in_prompt, int* experts, const float* weights) {
  const auto tokens = static_cast<double>(std::count(in_prompt, in_prompt + rows, 1));
  if (tokens == 0) return;
  const double wanted = share_ * active_ * tokens / experts_;
  const int capacity = std::max(kFewRows, static_cast<int>(std::floor(wanted + 0.5)));
  if (at_random_) {
    order_at_random(layer, rows, in_prompt);
  } else {
    order_by_weight(rows, in_prompt, weights);
  }
  load_.assign(experts_, 0);
  for (const int pair : order_) {
    int& expert = experts[pair];
    if (load_[expert] < capacity) {
      ++load_[expert];
    } else {
      expert = kSkipped;
      ++skipped_;
    }
  }
  pairs_ += order_.size();
}

void Capacity::order_by_weight(int rows, const uint8_t* in_prompt, const float* weights) {
  rows_.clear();
  priorities_.assign(rows, -std::numeric_limits<float>::infinity());
  for (int row = 0; row < rows; ++row) {
    if (in_prompt[row] == 0) continue;
    rows_.push_back(row);
    for (int slot = 0; slot < active_; ++slot) {
      const float weight = weights[row * active_ + slot];
      if (weight > priorities_[row]) priorities_[row] = weight;  // never NaN, which cannot be sorted
    }
  }
  std::sort(rows_.begin(), rows_.end(), [this](int a, int b) {
    return priorities_[a] != priorities_[b] ? priorities_[a] > priorities_[b] : a < b;
  });
  order_.clear();
  for (int slot = 0; slot < active_; ++slot) {
    for (const int row : rows_) order_.push_back(row * active_ + slot);
  }
}

// The same order in every pass, but another one in each layer.
void Capacity::order_at_random(int layer, int rows, const uint8_t* in_prompt) {
  const int pairs = rows * active_;
  order_.clear();
  places_.resize(pairs);
  for (int pair = 0; pair < pairs; ++pair) {
    places_[pair] = scramble(static_cast<uint64_t>(layer) << 32 | static_cast<uint32_t>(pair + 1));
    if (in_prompt[pair / active_] != 0) order_.push_back(pair);
  }
  std::sort(order_.begin(), order_.end(), [this](int a, int b) { return places_[a] < places_[b]; });
}

}  // namespace mobilemoe
