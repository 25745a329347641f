#include "compute/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>

#include "error.h"

namespace mobilemoe {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double usable(float logit) { return std::isnan(logit) ? -kInfinity : static_cast<double>(logit); }
double usable(double score) { return score; }  // scores come from usable logits

void require(bool holds, const char* name, double value, const char* rule) {
  if (holds) return;
  char digits[32];
  std::snprintf(digits, sizeof digits, "%.10g", value);
  throw Error(ErrorCode::usage, std::string(name) + " is " + digits + ", but must be " + rule);
}

void check_token(const char* name, int token, int vocab_size) {
  if (token >= 0 && token < vocab_size) return;
  throw Error(ErrorCode::usage, std::string(name) + " names token " + std::to_string(token) +
                                    ", but the vocabulary has " + std::to_string(vocab_size) + " tokens");
}

bool has_bit(const uint32_t* bits, int i) { return (bits[i / 32] >> (i % 32) & 1U) != 0; }

// The index of the highest score, the first of equal ones; throws Error(numerics) if no score is above -infinity. With
// `allowed`, of those whose bit is set.
template <class T>
int best_of(const T* scores, int size, const uint32_t* allowed = nullptr) {
  int best = -1;
  T highest = -std::numeric_limits<T>::infinity();
  for (int first = 0; first < size; first += 32) {
    const uint32_t bits = allowed == nullptr ? ~0U : allowed[first / 32];
    if (bits == 0) continue;  // the most usual in the middle of a structure
    const int end = std::min(size, first + 32);
    for (int i = first; i < end; ++i) {
      if (scores[i] > highest && (bits >> (i - first) & 1U) != 0) {  // false for NaN
        highest = scores[i];
        best = i;
      }
    }
  }
  if (best < 0) throw Error(ErrorCode::numerics, "the model gave no usable logits: its weights hold NaN");
  return best;
}

// The indices of the `count` highest scores, best first, found in one pass with a heap of `count`.
template <class T>
void likeliest(const T* scores, int size, int count, std::vector<int>& best) {
  const auto better = [scores](int a, int b) {
    const double x = usable(scores[a]);
    const double y = usable(scores[b]);
    return x > y || (x == y && a < b);
  };
  best.resize(std::min(count, size));
  std::iota(best.begin(), best.end(), 0);
  if (best.empty()) return;
  std::make_heap(best.begin(), best.end(), better);  // the worst is in front
  for (int i = static_cast<int>(best.size()); i < size; ++i) {
    if (!better(i, best.front())) continue;
    std::pop_heap(best.begin(), best.end(), better);
    best.back() = i;
    std::push_heap(best.begin(), best.end(), better);
  }
  std::sort_heap(best.begin(), best.end(), better);
}

// Log-probabilities under the model itself.
class LogSoftmax {
 public:
  LogSoftmax(const float* logits, int size) : highest_(usable(logits[best_of(logits, size)])) {
    double sum = 0;
    for (int i = 0; i < size; ++i) sum += relative(logits[i]);
    log_sum_ = std::log(sum);
  }
  float operator()(float logit) const {
    const double x = usable(logit);
    return static_cast<float>((x == highest_ ? 0.0 : x - highest_) - log_sum_);
  }

 private:
  double relative(float logit) const {
    const double x = usable(logit);
    return x == highest_ ? 1.0 : std::exp(x - highest_);  // infinity minus infinity would be NaN
  }
  double highest_;
  double log_sum_;
};

// SplitMix64 of Steele, Lea and Flood; 53 of its bits give a number in [0, 1).
double uniform(uint64_t& state) {
  state += 0x9E3779B97F4A7C15U;
  uint64_t x = state;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
  x ^= x >> 31;
  return static_cast<double>(x >> 11) * 0x1p-53;
}

double sum_of(const std::vector<double>& weights, const std::vector<int>& tokens) {
  double sum = 0;
  for (const int token : tokens) sum += weights[token];
  return sum;
}

// Tokens in buckets by weight, from 1 down, with 32 buckets for each power of two: to find a place in the order of all
// tokens, only those of one bucket have to be sorted.
class Buckets {
 public:
  Buckets(const std::vector<double>& weights, const std::vector<int>& tokens)
      : weights_(weights), tokens_(tokens), bucket_(tokens.size()), sums_(kBuckets) {
    for (size_t i = 0; i < tokens.size(); ++i) {
      const double weight = weights[tokens[i]];
      bucket_[i] = bucket_of(weight);
      sums_[bucket_[i]] += weight;
    }
  }

  // Draws one of the fewest likeliest tokens that together hold `top_p` of the weight and weigh at least `min_p` each.
  int draw(double top_p, double min_p, uint64_t& state) const {
    const double wanted = top_p * std::accumulate(sums_.begin(), sums_.end(), 0.0);
    const int lightest = bucket_of(min_p);
    int last = 0;  // the first bucket that is not kept whole
    double before = 0;
    while (last < lightest && before + sums_[last] < wanted) before += sums_[last++];
    std::vector<int> kept = sorted(last);
    double sum = before;
    size_t count = 0;
    for (; count < kept.size() && sum < wanted && weights_[kept[count]] >= min_p; ++count) sum += weights_[kept[count]];
    kept.resize(count);

    const double target = uniform(state) * sum;
    before = 0;
    int drawn = 0;
    while (drawn < last && before + sums_[drawn] <= target) before += sums_[drawn++];
    if (drawn < last) kept = sorted(drawn);
    for (const int token : kept) {
      before += weights_[token];
      if (before > target) return token;
    }
    return kept.empty() ? sorted(0).front() : kept.back();  // where sums were rounded
  }

 private:
  static constexpr int kBuckets = 4096;

  static uint16_t bucket_of(double weight) {
    constexpr int kShift = 47;  // leaves the exponent and 5 bits of the fraction
    constexpr uint64_t kOne = uint64_t{0x3FF0000000000000} >> kShift;
    uint64_t bits = 0;
    static_assert(sizeof bits == sizeof weight);
    std::memcpy(&bits, &weight, sizeof bits);
    return static_cast<uint16_t>(std::min<uint64_t>(kOne - (bits >> kShift), kBuckets - 1));
  }

  // The tokens of one bucket, the heaviest first.
  std::vector<int> sorted(int bucket) const {
    std::vector<int> found;
    for (size_t i = 0; i < tokens_.size(); ++i) {
      if (bucket_[i] == bucket) found.push_back(tokens_[i]);
    }
    std::sort(found.begin(), found.end(),
              [this](int a, int b) { return weights_[a] > weights_[b] || (weights_[a] == weights_[b] && a < b); });
    return found;
  }

  const std::vector<double>& weights_;
  const std::vector<int>& tokens_;
  std::vector<uint16_t> bucket_;
  std::vector<double> sums_;
};

int draw(const std::vector<double>& weights, const std::vector<int>& tokens, uint64_t& state) {
  const double target = uniform(state) * sum_of(weights, tokens);
  double sum = 0;
  int chosen = tokens.front();
  for (const int token : tokens) {
    const double weight = weights[token];
    if (weight > 0) chosen = token;
    sum += weight;
    if (sum > target) break;
  }
  return chosen;
}

}  // namespace

Sampler::Sampler(Sampling sampling, int vocab_size)
    : sampling_(std::move(sampling)), vocab_size_(vocab_size), state_(sampling_.seed) {
  const Sampling& s = sampling_;
  require(vocab_size > 0, "vocab_size", vocab_size, "above 0");
  require(s.temperature >= 0 && s.temperature < kInfinity, "temperature", s.temperature, "0 or more");
  require(s.top_k >= 0, "top_k", s.top_k, "0 (off) or more");
  require(s.top_p > 0 && s.top_p <= 1, "top_p", s.top_p, "above 0 and at most 1");
  require(s.min_p >= 0 && s.min_p <= 1, "min_p", s.min_p, "between 0 and 1");
  require(s.repetition_penalty > 0 && s.repetition_penalty < kInfinity, "repetition_penalty", s.repetition_penalty,
          "above 0");
  require(std::isfinite(s.presence_penalty), "presence_penalty", s.presence_penalty, "finite");
  require(std::isfinite(s.frequency_penalty), "frequency_penalty", s.frequency_penalty, "finite");
  for (const auto& [token, bias] : s.logit_bias) {
    check_token("logit_bias", token, vocab_size);
    require(std::isfinite(bias), "logit_bias", bias, "finite");
  }
}

void Sampler::see(const int* tokens, int count) {
  for (int i = 0; i < count; ++i) check_token("the prompt", tokens[i], vocab_size_);
  for (int i = 0; i < count; ++i) seen_.emplace(tokens[i], 0);
}

Choice Sampler::choose(const float* logits, bool with_logprob, int top, const uint32_t* allowed) {
  require(top >= 0 && top <= vocab_size_, "top", top, "between 0 and the size of the vocabulary");
  Choice choice{next_token(logits, allowed), 0, {}};
  if (with_logprob || top > 0) {
    const LogSoftmax logprob(logits, vocab_size_);
    choice.logprob = with_logprob ? logprob(logits[choice.token]) : 0;
    likeliest(logits, vocab_size_, top, order_);
    for (const int token : order_) choice.top.emplace_back(token, logprob(logits[token]));
  }
  ++seen_[choice.token];
  return choice;
}

int Sampler::next_token(const float* logits, const uint32_t* allowed) {
  const bool is_adjusted = !sampling_.logit_bias.empty() || (has_penalties() && !seen_.empty());
  if (sampling_.temperature == 0 && !is_adjusted) return best_of(logits, vocab_size_, allowed);

  scores_.resize(vocab_size_);
  for (int i = 0; i < vocab_size_; ++i) {  // minus infinity stays so, whatever the bias and the penalties
    scores_[i] = allowed == nullptr || has_bit(allowed, i) ? usable(logits[i]) : -kInfinity;
  }
  if (is_adjusted) adjust();
  const int best = best_of(scores_.data(), vocab_size_);
  const double highest = scores_[best];
  if (sampling_.temperature == 0 || highest == kInfinity) return best;  // an infinite logit has all the probability

  if (sampling_.top_k > 0) {
    likeliest(scores_.data(), vocab_size_, sampling_.top_k, order_);
  } else {
    order_.clear();
    for (int i = 0; i < vocab_size_; ++i) {
      if (scores_[i] > -kInfinity) order_.push_back(i);
    }
  }
  for (const int token : order_) {
    double& score = scores_[token];
    score = std::exp((score - highest) / sampling_.temperature);
  }
  if (sampling_.top_p < 1) return Buckets(scores_, order_).draw(sampling_.top_p, sampling_.min_p, state_);
  if (sampling_.min_p > 0) {  // the best weighs 1
    const auto is_too_light = [this](int token) { return scores_[token] < sampling_.min_p; };
    order_.erase(std::remove_if(order_.begin(), order_.end(), is_too_light), order_.end());
  }
  return draw(scores_, order_, state_);
}

bool Sampler::has_penalties() const {
  return sampling_.repetition_penalty != 1 || sampling_.presence_penalty != 0 || sampling_.frequency_penalty != 0;
}

void Sampler::adjust() {
  for (const auto& [token, bias] : sampling_.logit_bias) scores_[token] += bias;
  if (!has_penalties()) return;
  for (const auto& [token, times] : seen_) {
    double& score = scores_[token];
    score = score > 0 ? score / sampling_.repetition_penalty : score * sampling_.repetition_penalty;
    if (times > 0) score -= sampling_.presence_penalty + sampling_.frequency_penalty * times;
  }
}

}  // namespace mobilemoe
