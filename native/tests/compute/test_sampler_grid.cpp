// The sampler against a slow and obvious one, over a grid of settings, awkward logits and masks; every instruction set,
// with and without a pool of threads, must give the same tokens.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <random>

#include "check.h"
#include "compute/sampler.h"
#include "kernels/dispatch.h"

using namespace mobilemoe;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kUnits = 17592186044416;  // of weight: 2^44

// Sorts everything, and adds up one token after the other.
class SlowSampler {
 public:
  explicit SlowSampler(Sampling sampling) : sampling_(std::move(sampling)), state_(sampling_.seed) {}

  void see(int token) { seen_.emplace(token, 0); }

  // -1 if nothing can be chosen.
  int choose(const std::vector<float>& logits, const std::vector<uint32_t>& allowed) {
    const std::vector<float> scores = scores_of(logits, allowed);
    std::vector<int> tokens = ranked(scores);
    const double highest = scores[tokens[0]];
    if (highest == -HUGE_VAL) return -1;
    if (sampling_.temperature == 0 || highest == HUGE_VAL) return count(tokens[0]);

    const auto weight = [&](int token) {
      return std::rint(std::exp((static_cast<double>(scores[token]) - highest) / sampling_.temperature) * kUnits);
    };
    const auto size = static_cast<int>(tokens.size());
    if (sampling_.top_k > 0) {
      tokens.resize(std::min(sampling_.top_k, size));
    } else if (sampling_.top_p == 1) {
      std::sort(tokens.begin(), tokens.end());
    }
    double all = 0;
    for (const int token : tokens) all += weight(token);
    std::vector<int> kept;
    double sum = 0;
    for (const int token : tokens) {
      if (sampling_.top_p < 1 && sum >= sampling_.top_p * all) break;
      if (weight(token) < std::rint(sampling_.min_p * kUnits)) continue;
      kept.push_back(token);
      sum += weight(token);
    }
    double number = std::floor(uniform() * sum);
    for (const int token : kept) {
      if (number < weight(token)) return count(token);
      number -= weight(token);
    }
    return -2;  // not possible
  }

  static std::vector<int> ranked(const std::vector<float>& scores) {
    std::vector<int> tokens(scores.size());
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int>(i);
    std::stable_sort(tokens.begin(), tokens.end(), [&](int a, int b) { return usable(scores[a]) > usable(scores[b]); });
    return tokens;
  }

  static float usable(float score) { return std::isnan(score) ? -kInfinity : score; }

 private:
  std::vector<float> scores_of(const std::vector<float>& logits, const std::vector<uint32_t>& allowed) {
    std::vector<float> scores;
    for (size_t i = 0; i < logits.size(); ++i) {
      const bool is_allowed = allowed.empty() || (allowed[i / 32] >> (i % 32) & 1) != 0;
      scores.push_back(is_allowed ? usable(logits[i]) : -kInfinity);
    }
    for (const auto& [token, bias] : sampling_.logit_bias) scores[token] += bias;
    for (const auto& [token, times] : seen_) {
      double score = scores[token];
      score = score > 0 ? score / sampling_.repetition_penalty : score * sampling_.repetition_penalty;
      if (times > 0) score -= sampling_.presence_penalty + sampling_.frequency_penalty * times;
      scores[token] = static_cast<float>(score);
    }
    return scores;
  }

  int count(int token) {
    ++seen_[token];
    return token;
  }

  double uniform() {  // SplitMix64
    uint64_t x = state_ += 0x9E3779B97F4A7C15U;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
    return static_cast<double>((x ^ (x >> 31)) >> 11) / 9007199254740992.0;
  }

  Sampling sampling_;
  uint64_t state_;
  std::map<int, int> seen_;
};

using Numbers = std::mt19937;

std::vector<float> normal(Numbers& numbers, int size, float deviation) {
  std::normal_distribution<float> distribution(0, deviation);
  std::vector<float> logits(static_cast<size_t>(size));
  for (float& logit : logits) logit = distribution(numbers);
  return logits;
}

std::vector<float> logits_of_kind(Numbers& numbers, int size, int kind) {
  std::vector<float> logits = normal(numbers, size, kind == 1 ? 0.02F : 4);
  for (float& logit : logits) {
    const auto chance = numbers() % 10;
    if (kind == 2) logit = std::round(logit / 2);  // many ties
    if (kind == 3 && chance < 4) logit = chance == 0 ? kInfinity - kInfinity : -kInfinity;
    if (kind == 4) logit = logit * 20;  // most of them without weight
  }
  if (kind == 5) {
    for (int i = 0; i < 3; ++i) logits[numbers() % logits.size()] = kInfinity;
  }
  return logits;
}

std::vector<uint32_t> mask_of_kind(Numbers& numbers, int size, int kind) {
  if (kind == 0) return {};
  std::vector<uint32_t> allowed(static_cast<size_t>((size + 31) / 32));
  for (uint32_t& word : allowed) word = kind == 1 ? static_cast<uint32_t>(numbers()) : numbers() % 3 == 0 ? ~0U : 0;
  if (kind == 3) {  // a few tokens
    std::fill(allowed.begin(), allowed.end(), 0);
    for (int i = 0; i < 3; ++i) {
      const unsigned token = static_cast<unsigned>(numbers()) % static_cast<unsigned>(size);
      allowed[token / 32] |= 1U << token % 32;
    }
  }
  return allowed;
}

std::vector<Sampling> grid_of_settings(int size) {
  const std::vector<std::function<void(Sampling&)>> changes{
      [](Sampling&) {},
      [](Sampling& s) { s.temperature = 0.7; },
      [](Sampling& s) { s.temperature = 30; },
      [](Sampling& s) { s.temperature = 1e-310; },
      [](Sampling& s) { s.temperature = 1, s.top_k = 7; },
      [](Sampling& s) { s.temperature = 1, s.top_k = 1 << 20; },
      [](Sampling& s) { s.temperature = 0.7, s.top_p = 0.9123; },
      [](Sampling& s) { s.temperature = 3, s.top_p = 0.99991; },
      [](Sampling& s) { s.temperature = 1, s.top_p = 1e-6; },
      [](Sampling& s) { s.temperature = 1, s.min_p = 0.0512; },
      [](Sampling& s) { s.temperature = 2, s.min_p = 1e-9; },
      [](Sampling& s) { s.temperature = 1, s.top_p = 0.9511, s.min_p = 0.0123; },
      [](Sampling& s) { s.temperature = 2, s.top_p = 0.9, s.min_p = 0.4; },
      [](Sampling& s) { s.temperature = 1, s.top_p = 0.99999, s.min_p = 1e-11; },
      [](Sampling& s) { s.temperature = 1, s.top_k = 40, s.top_p = 0.9123, s.min_p = 0.0123; },
      [](Sampling& s) { s.repetition_penalty = 1.3, s.frequency_penalty = 0.5, s.presence_penalty = 1; },
      [](Sampling& s) { s.temperature = 0.8, s.top_p = 0.8123, s.repetition_penalty = 1.3, s.presence_penalty = -1; },
      [size](Sampling& s) { s.temperature = 1, s.logit_bias = {{0, 5.0F}, {size - 1, 4.0F}, {size / 2, -3.0F}}; },
      [size](Sampling& s) {
        s.temperature = 1, s.top_p = 0.9123, s.min_p = 0.0123, s.repetition_penalty = 1.3, s.frequency_penalty = 0.2;
        s.logit_bias = {{size - 1, 4.0F}, {size / 3, 6.0F}, {size - 1, 1.0F}, {size / 2, -3.0F}};
      },
  };
  std::vector<Sampling> settings;
  for (const auto& change : changes) {
    Sampling sampling;
    change(sampling);
    sampling.seed = settings.size();
    settings.push_back(sampling);
  }
  return settings;
}

// Chooses a few tokens with the sampler of each instruction set, alone and with the pool: they are the slow one's.
void check_tokens(const Sampling& sampling, const std::vector<std::vector<float>>& steps,
                  const std::vector<uint32_t>& allowed, ThreadPool& pool) {
  const auto size = static_cast<int>(steps[0].size());
  const int prompt = size / 3;
  std::vector<int> wanted;
  SlowSampler slow(sampling);
  slow.see(prompt);
  for (const auto& logits : steps) wanted.push_back(slow.choose(logits, allowed));
  for (const char* const* isa = available_kernels(); *isa != nullptr; ++isa) {
    for (ThreadPool* threads : {static_cast<ThreadPool*>(nullptr), &pool}) {
      Sampler sampler(sampling, size, *find_kernels(*isa));
      sampler.see(&prompt, 1);
      std::vector<int> tokens;
      for (const auto& logits : steps) {
        try {
          const uint32_t* bits = allowed.empty() ? nullptr : allowed.data();
          tokens.push_back(sampler.choose(logits.data(), false, 0, bits, threads).token);
        } catch (const Error&) {
          tokens.push_back(-1);
        }
      }
      if (tokens != wanted) throw check::Failure{std::string(*isa) + (threads == nullptr ? " alone" : " with a pool")};
    }
  }
}

}  // namespace

TEST(sampler_grid_gives_the_tokens_of_a_slow_sampler_with_every_instruction_set_and_any_threads) {
  ThreadPool pool(3, 3);
  Numbers numbers(1);
  for (const int size : {1, 33, 64, 300, 4500}) {
    for (int kind = 0; kind < 6; ++kind) {
      std::vector<std::vector<float>> steps;
      for (int i = 0; i < 3; ++i) steps.push_back(logits_of_kind(numbers, size, kind));
      for (int mask = 0; mask < 4; ++mask) {
        const std::vector<uint32_t> allowed = mask_of_kind(numbers, size, mask);
        const std::vector<Sampling> settings = grid_of_settings(size);
        for (size_t i = 0; i < settings.size(); ++i) {
          try {
            check_tokens(settings[i], steps, allowed, pool);
          } catch (check::Failure& failure) {
            failure.what += ": size " + std::to_string(size) + ", kind " + std::to_string(kind) + ", mask " +
                            std::to_string(mask) + ", setting " + std::to_string(i);
            throw;
          }
        }
      }
    }
  }
}

TEST(sampler_grid_of_log_probabilities_is_that_of_double_arithmetic) {
  ThreadPool pool(2, 2);
  Numbers numbers(2);
  for (const int size : {1, 64, 300, 4500}) {
    for (int kind = 0; kind < 6; ++kind) {
      const std::vector<float> logits = logits_of_kind(numbers, size, kind);
      const std::vector<int> ranked = SlowSampler::ranked(logits);
      const double highest = SlowSampler::usable(logits[ranked[0]]);
      if (highest == -HUGE_VAL) continue;  // nothing to choose from
      const auto above_lowest = [&](int token) {
        const double score = SlowSampler::usable(logits[token]);
        return score == highest ? 0 : score - highest;  // where both are infinite
      };
      double sum = 0;
      for (const int token : ranked) sum += std::exp(above_lowest(token));
      for (const int top : {0, 1, 5, 100, size}) {
        if (top > size) continue;
        for (const char* const* isa = available_kernels(); *isa != nullptr; ++isa) {
          Sampler sampler({}, size, *find_kernels(*isa));
          const Choice choice = sampler.choose(logits.data(), true, top, nullptr, &pool);
          CHECK_EQ(choice.token, ranked[0]);
          CHECK_NEAR(choice.logprob, -std::log(sum), 1e-6);
          CHECK_EQ(choice.top.size(), static_cast<size_t>(top));
          for (int i = 0; i < top; ++i) {
            CHECK_EQ(choice.top[i].first, ranked[i]);
            const double wanted = above_lowest(ranked[i]) - std::log(sum);
            CHECK_NEAR(choice.top[i].second, wanted, 1e-6 - 1e-7 * wanted);
          }
        }
      }
    }
  }
}
