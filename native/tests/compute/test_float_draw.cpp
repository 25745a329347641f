// A draw in floats gives the token of the exact one or none, however near its number is to the edge between two tokens.
#include <cmath>
#include <limits>
#include <random>

#include "check.h"
#include "compute/draw.h"
#include "compute/float_draw.h"
#include "compute/sampling.h"
#include "compute/score_changes.h"
#include "kernels/dispatch.h"
#include "kernels/weight.h"

using namespace mobilemoe;

namespace {

using Numbers = std::mt19937;

struct Rules {
  double scale, top_p;  // top_p 1: by id
  uint64_t least;
};

// What both ways choose, for numbers of all the weight in [0, 1).
class Draws {
 public:
  Draws(const Kernels& kernels, ThreadPool* pool, const std::vector<float>& logits, const Rules& rules)
      : pool_(pool), rules_(rules), scores_(kernels), in_floats_(kernels) {
    scores_.read(logits.data(), static_cast<int>(logits.size()), nullptr, pool);
    if (rules.top_p == 1) {
      by_id_.prepare(scores_, rules.scale, rules.least, pool);
    } else {
      by_rank_.prepare(scores_, rules.scale, rules.top_p, rules.least, pool);
    }
  }

  uint64_t total() const { return rules_.top_p == 1 ? by_id_.total() : by_rank_.total(); }

  int token(uint64_t number) { return rules_.top_p == 1 ? by_id_.token(number) : by_rank_.token(number); }

  // The last number of the token that takes this one.
  uint64_t last_of_token(uint64_t number) {
    const int wanted = token(number);
    uint64_t last = number, beyond = total();
    while (beyond - last > 1) {
      const uint64_t middle = last + (beyond - last) / 2;
      (token(middle) == wanted ? last : beyond) = middle;
    }
    return last;
  }

  // Whether the draw in floats knew the token.
  bool check(double uniform) {
    const auto number = std::min(static_cast<uint64_t>(uniform * static_cast<double>(total())), total() - 1);
    const int wanted = token(number);
    const auto found = rules_.top_p == 1
                           ? in_floats_.by_id(scores_, rules_.scale, rules_.least, uniform, pool_)
                           : in_floats_.by_rank(scores_, rules_.scale, rules_.top_p, rules_.least, uniform, pool_);
    if (found) CHECK_EQ(*found, wanted);
    return found.has_value();
  }

 private:
  ThreadPool* pool_;
  Rules rules_;
  Scores scores_;
  FloatDraw in_floats_;
  DrawById by_id_;
  DrawByRank by_rank_;
};

std::vector<float> logits_of_kind(Numbers& numbers, int size, int kind) {
  std::normal_distribution<float> distribution(0, kind == 0 ? 0.02F : kind == 1 ? 0.6F : 4.0F);
  std::vector<float> logits(static_cast<size_t>(size));
  for (float& logit : logits) logit = distribution(numbers) + (kind == 5 ? 300.0F : 0.0F);
  if (kind == 3) {
    for (float& logit : logits) logit = std::round(logit);
  }
  if (kind == 4) logits[numbers() % logits.size()] = 30;
  if (kind == 6) logits.assign(logits.size(), 1.5F);
  return logits;
}

const std::vector<Rules>& all_rules() {
  static const std::vector<Rules> rules = {
      {1, 1, 1},
      {1 / .7, 1, 1},
      {1, 1, kOne / 20},
      {1 / .7, .9, 1},
      {1, .99, 1},
      {1, .5, kOne / 20},
      {1 / .7, .95, kOne / 10000},
      {.05, .9, 1},
      {3, .9999, kOne >> 30},
  };
  return rules;
}

}  // namespace

TEST(float_draw_gives_the_exact_token_or_none) {
  ThreadPool pool(3, 3);
  Numbers numbers(5);
  std::uniform_real_distribution<double> uniform(0, 1);
  for (const int size : {1, 70, 5000, 30000}) {
    for (int kind = 0; kind < 7; ++kind) {
      const std::vector<float> logits = logits_of_kind(numbers, size, kind);
      for (const Rules& rules : all_rules()) {
        for (const char* const* isa = available_kernels(); *isa != nullptr; ++isa) {
          Draws draws(*find_kernels(*isa), kind % 2 == 0 ? &pool : nullptr, logits, rules);
          for (int i = 0; i < 4; ++i) draws.check(uniform(numbers));
          draws.check(0);
          draws.check(1 - 0x1p-53);
        }
      }
    }
  }
}

TEST(float_draw_knows_nearly_every_token) {
  Numbers numbers(6);
  std::uniform_real_distribution<double> uniform(0, 1);
  const std::vector<float> logits = logits_of_kind(numbers, 30000, 2);
  for (const Rules& rules : all_rules()) {
    if (rules.scale < 1) continue;
    Draws draws(choose_kernels(), nullptr, logits, rules);
    int known = 0;
    for (int i = 0; i < 100; ++i) known += static_cast<int>(draws.check(uniform(numbers)));
    CHECK(known >= 90);
  }
}

TEST(float_draw_leaves_numbers_beside_an_edge_between_tokens_to_exact_weights) {
  Numbers numbers(7);
  std::uniform_real_distribution<double> uniform(0, 1);
  for (const int kind : {1, 2}) {
    const std::vector<float> logits = logits_of_kind(numbers, 5000, kind);
    for (const Rules& rules : all_rules()) {
      Draws draws(choose_kernels(), nullptr, logits, rules);
      const auto total = static_cast<double>(draws.total());
      for (int i = 0; i < 5; ++i) {
        const auto edge = static_cast<double>(draws.last_of_token(static_cast<uint64_t>(uniform(numbers) * total)));
        for (const double far : {-1e9, -1e7, -1e5, -100.0, -1.0, 0.0, 1.0, 2.0, 100.0, 1e5, 1e7, 1e9}) {
          draws.check(std::clamp((edge + far) / total, 0.0, 1 - 0x1p-53));
        }
      }
    }
  }
}
