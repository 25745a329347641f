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

// Which of the numbers below `count` a number in [0, 1) chooses.
uint64_t number_below(uint64_t count, double uniform) {
  const auto number = static_cast<uint64_t>(uniform * static_cast<double>(count));
  return std::min(number, count - 1);  // `count` itself where it was rounded
}

float logprob(float logit, double highest, double log_sum) {
  const double score = std::isnan(logit) ? -kInfinity : logit;
  return static_cast<float>((score == highest ? 0 : score - highest) - log_sum);
}

}  // namespace

Sampler::Sampler(Sampling sampling, int vocab_size, const Kernels& kernels)
    : sampling_(std::move(sampling)),
      vocab_size_(vocab_size),
      state_(sampling_.seed),
      changes_(sampling_, kernels),
      scores_(kernels),
      in_floats_(kernels) {
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
  changes_.see(tokens, count);
}

Choice Sampler::choose(const float* logits, bool with_logprob, int top, const uint32_t* allowed, ThreadPool* pool) {
  require(top >= 0 && top <= vocab_size_, "top", top, "between 0 and the size of the vocabulary");
  Choice choice = {-1, 0, {}};
  double log_sum = 0;
  const bool is_told = with_logprob || top > 0;
  if (is_told) {  // first, because the changes look at logits here and there, which then are in a cache
    scores_.read(logits, vocab_size_, nullptr, pool);
    log_sum = log_of_sum(logits, pool);
    scores_.likeliest(top, candidates_);
    for (const Candidate& candidate : candidates_) {
      choice.top.emplace_back(candidate.token, logprob(candidate.score, scores_.highest(), log_sum));
    }
  }
  const float highest = scores_.highest();
  const bool is_changed = changes_.prepare(logits, allowed);
  if (is_changed || !is_told) scores_.read(logits, vocab_size_, is_changed ? &changes_ : nullptr, pool);
  choice.token = next_token(pool);
  if (with_logprob) choice.logprob = logprob(logits[choice.token], highest, log_sum);
  changes_.take(choice.token);
  return choice;
}

int Sampler::next_token(ThreadPool* pool) {
  const int best = scores_.best();
  // An infinite logit has all the probability.
  if (sampling_.temperature == 0 || static_cast<double>(scores_.highest()) == kInfinity) return best;

  constexpr double kSteepest = 1e300;  // finite, so that the best token's 0 stays 0
  const double scale = std::min(1 / sampling_.temperature, kSteepest);
  const auto least = static_cast<uint64_t>(std::max(1.0, std::rint(sampling_.min_p * static_cast<double>(kOne))));
  const double number = uniform(state_);
  if (sampling_.top_k > 0) return draw_of_top_k(scale, least, number);
  if (sampling_.top_p < 1) {
    if (const auto token = in_floats_.by_rank(scores_, scale, sampling_.top_p, least, number, pool)) return *token;
    by_rank_.prepare(scores_, scale, sampling_.top_p, least, pool);
    return by_rank_.token(number_below(by_rank_.total(), number));
  }
  if (const auto token = in_floats_.by_id(scores_, scale, least, number, pool)) return *token;
  by_id_.prepare(scores_, scale, least, pool);
  return by_id_.token(number_below(by_id_.total(), number));
}

int Sampler::draw_of_top_k(double scale, uint64_t least, double uniform) {
  scores_.likeliest(sampling_.top_k, candidates_);
  const auto wanted = sampling_.top_p * static_cast<double>(scores_.weigh(candidates_, scale));
  uint64_t sum = 0;
  size_t count = 0;
  while (count < candidates_.size() && static_cast<double>(sum) < wanted && candidates_[count].weight >= least) {
    sum += candidates_[count++].weight;
  }
  uint64_t number = number_below(sum, uniform);
  const Candidate* drawn = candidates_.data();
  for (; number >= drawn->weight; ++drawn) number -= drawn->weight;
  return drawn->token;
}

// Of the sum of e^(logit - highest), where `scores_` are the logits themselves.
double Sampler::log_of_sum(const float* logits, ThreadPool* pool) {
  const double highest = scores_.highest();
  if (highest == -kInfinity) scores_.best();  // throws
  if (highest < kInfinity) return std::log(scores_.sum_exp(pool));
  return std::log(std::count(logits, logits + vocab_size_, scores_.highest()));  // they share the probability
}

}  // namespace mobilemoe
