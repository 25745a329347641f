#include "compute/score_changes.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace mobilemoe {
namespace {

// Of the nearest float, or of the largest one: what is finite stays so.
float to_float(double score) {
  constexpr double kMost = std::numeric_limits<float>::max();
  return static_cast<float>(std::isinf(score) ? score : std::clamp(score, -kMost, kMost));
}

}  // namespace

ScoreChanges::ScoreChanges(const Sampling& sampling, const Kernels& kernels)
    : kernels_(kernels),
      repetition_(sampling.repetition_penalty),
      presence_(sampling.presence_penalty),
      frequency_(sampling.frequency_penalty),
      biases_(sampling.logit_bias) {
  std::stable_sort(biases_.begin(), biases_.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
}

void ScoreChanges::see(const int* tokens, int count) {
  for (int i = 0; i < count; ++i) seen_.push_back({tokens[i], 0});
  // Of a token, what was generated comes first and stays.
  std::sort(seen_.begin(), seen_.end(), [](const Seen& a, const Seen& b) {
    return a.token < b.token || (a.token == b.token && a.times > b.times);
  });
  const auto is_same = [](const Seen& a, const Seen& b) { return a.token == b.token; };
  seen_.erase(std::unique(seen_.begin(), seen_.end(), is_same), seen_.end());
}

void ScoreChanges::take(int token) {
  auto seen = std::lower_bound(seen_.begin(), seen_.end(), token,
                               [](const Seen& entry, int wanted) { return entry.token < wanted; });
  if (seen == seen_.end() || seen->token != token) seen = seen_.insert(seen, {token, 0});
  ++seen->times;
}

bool ScoreChanges::prepare(const float* scores, const uint32_t* allowed) {
  scores_ = scores;
  allowed_ = allowed;
  changed_.clear();
  const bool has_penalties = repetition_ != 1 || presence_ != 0 || frequency_ != 0;
  auto bias = biases_.begin();
  auto seen = has_penalties ? seen_.begin() : seen_.end();
  // They lie here and there in memory: asked for one by one they would come one by one.
  for (auto entry = seen; entry != seen_.end(); ++entry) __builtin_prefetch(scores + entry->token);
  while (bias != biases_.end() || seen != seen_.end()) {
    const bool is_seen = seen != seen_.end() && (bias == biases_.end() || seen->token <= bias->first);
    const int token = is_seen ? seen->token : bias->first;
    const bool is_allowed = allowed == nullptr || (allowed[token / 32] >> token % 32 & 1) != 0;
    float score = is_allowed ? scores[token] : -std::numeric_limits<float>::infinity();
    for (; bias != biases_.end() && bias->first == token; ++bias) {
      score = to_float(static_cast<double>(score) + static_cast<double>(bias->second));
    }
    if (is_seen) score = penalized(score, seen++->times);
    changed_.emplace_back(token, score);
  }
  return allowed != nullptr || !changed_.empty();
}

float ScoreChanges::penalized(float score, int times) const {
  const double from = score, divided = from / repetition_, multiplied = from * repetition_;
  const double repeated = from > 0 ? divided : multiplied;
  return to_float(repeated - (times > 0 ? presence_ + frequency_ * times : 0));
}

bool ScoreChanges::allow_any(int begin, int end) const {
  if (allowed_ == nullptr) return true;
  uint32_t any = 0;
  for (int i = begin; i < end; i += 32) any |= allowed_[i / 32];
  return any != 0;
}

void ScoreChanges::copy(int begin, int end, float* changed) const {
  if (allowed_ == nullptr) {
    std::copy_n(scores_ + begin, end - begin, changed);
  } else {
    kernels_.allow(scores_ + begin, end - begin, allowed_ + begin / 32, changed);
  }
  auto entry = std::lower_bound(changed_.begin(), changed_.end(), begin,
                                [](const auto& pair, int token) { return pair.first < token; });
  for (; entry != changed_.end() && entry->first < end; ++entry) changed[entry->first - begin] = entry->second;
}

}  // namespace mobilemoe
