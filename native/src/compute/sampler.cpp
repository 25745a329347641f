#include "compute/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>

#include "error.h"

namespace mobilemoe {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

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

// SplitMix64 of Steele, Lea and Flood; 53 of its bits give a number in [0, 1).
double uniform(uint64_t& state) {
  state += 0x9E3779B97F4A7C15U;
  uint64_t x = state;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
  x ^= x >> 31;
  return static_cast<double>(x >> 11) * 0x1p-53;
}

// One of the numbers below `count`.
uint64_t uniform_below(uint64_t count, uint64_t& state) {
  const auto number = static_cast<uint64_t>(uniform(state) * static_cast<double>(count));
  return std::min(number, count - 1);  // `count` itself where it was rounded
}

struct Bits {  // of[i] has the bit i alone
  constexpr Bits() : of() {
    for (int i = 0; i < 32; ++i) of[i] = 1U << i;
  }
  uint32_t of[32];
};
constexpr Bits kBits;

// Copies 32 scores or fewer; those whose bit is 0 become -infinity.
void copy_allowed(const float* scores, int count, uint32_t bits, float* to) {
  constexpr auto kNever = static_cast<float>(-kInfinity);
  if (bits == ~0U) {
    std::copy_n(scores, count, to);
  } else if (bits == 0) {
    std::fill_n(to, count, kNever);
  } else {
    for (int i = 0; i < count; ++i) {  // plain, for the compiler's vectors
      const float score = scores[i];
      to[i] = (bits & kBits.of[i]) != 0 ? score : kNever;
    }
  }
}

// Of the nearest float, or of the largest one: what is finite stays so.
float to_float(double score) {
  constexpr double kMost = std::numeric_limits<float>::max();
  return static_cast<float>(std::isinf(score) ? score : std::clamp(score, -kMost, kMost));
}

}  // namespace

Sampler::Sampler(Sampling sampling, int vocab_size, const Kernels& kernels)
    : sampling_(std::move(sampling)),
      vocab_size_(vocab_size),
      state_(sampling_.seed),
      logits_(kernels),
      changed_(kernels) {
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

Choice Sampler::choose(const float* logits, bool with_logprob, int top, const uint32_t* allowed, ThreadPool* pool) {
  require(top >= 0 && top <= vocab_size_, "top", top, "between 0 and the size of the vocabulary");
  logits_.read(logits, vocab_size_, pool);
  Choice choice{next_token(logits, allowed, pool), 0, {}};
  if (with_logprob || top > 0) tell_logprobs(with_logprob, top, pool, choice);
  ++seen_[choice.token];
  return choice;
}

int Sampler::next_token(const float* logits, const uint32_t* allowed, ThreadPool* pool) {
  const bool is_changed = allowed != nullptr || !sampling_.logit_bias.empty() || (has_penalties() && !seen_.empty());
  if (is_changed) change(logits, allowed, pool);
  const Scores& scores = is_changed ? changed_ : logits_;
  const int best = scores.best();
  // An infinite logit has all the probability.
  if (sampling_.temperature == 0 || static_cast<double>(scores.highest()) == kInfinity) return best;

  constexpr double kSteepest = 1e300;  // finite, so that the best token's 0 stays 0
  const double scale = std::min(1 / sampling_.temperature, kSteepest);
  const auto least = static_cast<uint64_t>(std::max(1.0, std::rint(sampling_.min_p * static_cast<double>(kOne))));
  if (sampling_.top_k > 0) return draw_of_top_k(scores, scale, least);
  if (sampling_.top_p < 1) {
    by_rank_.prepare(scores, scale, sampling_.top_p, least, pool);
    return by_rank_.token(uniform_below(by_rank_.total(), state_));
  }
  by_id_.prepare(scores, scale, least, pool);
  return by_id_.token(uniform_below(by_id_.total(), state_));
}

int Sampler::draw_of_top_k(const Scores& scores, double scale, uint64_t least) {
  scores.likeliest(sampling_.top_k, candidates_);
  const auto wanted = sampling_.top_p * static_cast<double>(scores.weigh(candidates_, scale));
  uint64_t sum = 0;
  size_t count = 0;
  while (count < candidates_.size() && static_cast<double>(sum) < wanted && candidates_[count].weight >= least) {
    sum += candidates_[count++].weight;
  }
  uint64_t number = uniform_below(sum, state_);
  const Candidate* drawn = candidates_.data();
  for (; number >= drawn->weight; ++drawn) number -= drawn->weight;
  return drawn->token;
}

bool Sampler::has_penalties() const {
  return sampling_.repetition_penalty != 1 || sampling_.presence_penalty != 0 || sampling_.frequency_penalty != 0;
}

void Sampler::change(const float* logits, const uint32_t* allowed, ThreadPool* pool) {
  scores_.resize(vocab_size_);
  for_blocks(pool, vocab_size_, [&](int begin, int end, int) {
    for (int i = begin; i < end; i += 32) {
      copy_allowed(logits + i, std::min(32, end - i), allowed == nullptr ? ~0U : allowed[i / 32], scores_.data() + i);
    }
  });
  for (const auto& [token, bias] : sampling_.logit_bias) {
    scores_[token] = to_float(static_cast<double>(scores_[token]) + static_cast<double>(bias));
  }
  if (has_penalties()) {
    for (const auto& [token, times] : seen_) {
      double score = scores_[token];
      score = score > 0 ? score / sampling_.repetition_penalty : score * sampling_.repetition_penalty;
      if (times > 0) score -= sampling_.presence_penalty + sampling_.frequency_penalty * times;
      scores_[token] = to_float(score);
    }
  }
  changed_.read(scores_.data(), vocab_size_, pool);
}

void Sampler::tell_logprobs(bool with_logprob, int top, ThreadPool* pool, Choice& choice) {
  const double highest = logits_.highest();
  double log_sum = 0;
  if (highest == kInfinity) {  // they share the probability
    int count = 0;
    for (int token = 0; token < vocab_size_; ++token) count += static_cast<double>(logits_[token]) == kInfinity ? 1 : 0;
    log_sum = std::log(count);
  } else {
    by_id_.prepare(logits_, 1, 1, pool);
    log_sum = std::log(static_cast<double>(by_id_.total()) / static_cast<double>(kOne));
  }
  const auto logprob = [&](float logit) {
    const double score = std::isnan(logit) ? -kInfinity : logit;
    return static_cast<float>((score == highest ? 0 : score - highest) - log_sum);
  };
  if (with_logprob) choice.logprob = logprob(logits_[choice.token]);
  logits_.likeliest(top, candidates_);
  for (const Candidate& candidate : candidates_) choice.top.emplace_back(candidate.token, logprob(candidate.score));
}

}  // namespace mobilemoe
