#include "compute/capacity.h"

#include <algorithm>
#include <cmath>

namespace mobilemoe {
namespace {

// A number without a pattern, 0 or more (the last steps of splitmix64).
float scramble(int layer, int pair) {
  uint64_t x = static_cast<uint64_t>(layer) << 32 | static_cast<uint32_t>(pair + 1);
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return static_cast<float>((x ^ (x >> 31)) >> 40);
}

int round(double x) { return static_cast<int>(std::floor(x + 0.5)); }

}  // namespace

void Capacity::skip(int layer, int rows, const uint8_t* in_prompt, int* experts, const float* weights) {
  order_.clear();
  keys_.resize(static_cast<size_t>(rows) * active_);
  for (int row = 0; row < rows; ++row) {
    if (in_prompt[row] == 0) continue;
    float largest = -1;
    for (int pair = row * active_; pair < (row + 1) * active_; ++pair) {
      order_.push_back(pair);
      const float weight = weights[pair] > -1 ? weights[pair] : -1;  // NaN cannot be sorted
      keys_[pair] = skip_ == Skip::random ? scramble(layer, pair) : weight;
      largest = std::max(largest, weight);
    }
    if (skip_ == Skip::tokens) std::fill_n(&keys_[row * active_], active_, largest);
  }
  pairs_ += order_.size();
  if (skip_ == Skip::tokens) {
    skip_tokens(experts);
  } else {
    skip_pairs(experts);
  }
}

void Capacity::skip_pairs(int* experts) {
  const auto last = order_.begin() + round(share_ * static_cast<double>(order_.size()));
  if (last == order_.end()) return;
  std::nth_element(order_.begin(), last, order_.end(),
                   [this](int a, int b) { return keys_[a] != keys_[b] ? keys_[a] > keys_[b] : a < b; });
  for (auto pair = last; pair != order_.end(); ++pair) experts[*pair] = kSkipped;
  skipped_ += order_.end() - last;
}

void Capacity::skip_tokens(int* experts) {
  const int capacity = std::max(1, round(share_ * static_cast<double>(order_.size()) / experts_));
  std::sort(order_.begin(), order_.end(), [this](int a, int b) {
    if (a % active_ != b % active_) return a % active_ < b % active_;
    return keys_[a] != keys_[b] ? keys_[a] > keys_[b] : a < b;
  });
  load_.assign(experts_, 0);
  for (const int pair : order_) {
    if (++load_[experts[pair]] > capacity) {
      experts[pair] = kSkipped;
      ++skipped_;
    }
  }
}

}  // namespace mobilemoe
