#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "check.h"
#include "compute/sampler.h"

using mobilemoe::Choice;
using mobilemoe::ErrorCode;
using mobilemoe::Sampler;
using mobilemoe::Sampling;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

int choose(const Sampling& sampling, const std::vector<float>& logits) {
  return Sampler(sampling, static_cast<int>(logits.size())).choose(logits.data(), false, 0).token;
}

// How often each token comes out of 4000 draws.
std::map<int, int> histogram(const Sampling& sampling, const std::vector<float>& logits) {
  std::map<int, int> counts;
  Sampler sampler(sampling, static_cast<int>(logits.size()));
  for (int i = 0; i < 4000; ++i) ++counts[sampler.choose(logits.data(), false, 0).token];
  return counts;
}

std::vector<int> tokens_of(const std::map<int, int>& counts) {
  std::vector<int> tokens;
  for (const auto& [token, count] : counts) tokens.push_back(token);
  return tokens;
}

std::vector<float> logs(const std::vector<double>& shares) {
  std::vector<float> logits;
  for (const double share : shares) logits.push_back(static_cast<float>(std::log(share)));
  return logits;
}

Sampling at_temperature_one() {
  Sampling sampling;
  sampling.temperature = 1;
  return sampling;
}

}  // namespace

TEST(greedy_takes_the_lowest_id_of_the_highest_logits) {
  CHECK_EQ(choose({}, {1, 3, 2, 3}), 1);
  CHECK_EQ(choose({}, {-5}), 0);
  CHECK_EQ(choose({}, {-kInfinity, -1e30F}), 1);
}

TEST(nan_ranks_below_everything_and_nothing_usable_is_an_error) {
  CHECK_EQ(choose({}, {kNan, -2, kNan}), 1);
  CHECK_EQ(choose(at_temperature_one(), {kNan, -2, kNan}), 1);
  CHECK_EQ(choose(at_temperature_one(), {0, kInfinity, kInfinity}), 1);
  CHECK_THROWS_SAYING(choose({}, {kNan, kNan}), ErrorCode::numerics, "NaN");
  CHECK_THROWS(choose(at_temperature_one(), {kNan, -kInfinity}), ErrorCode::numerics);
}

TEST(temperature_draws_in_proportion) {
  const auto counts = histogram(at_temperature_one(), logs({.5, .25, .2, .05}));
  CHECK_NEAR(counts.at(0), 2000, 130);
  CHECK_NEAR(counts.at(1), 1000, 120);
  CHECK_NEAR(counts.at(2), 800, 110);
  CHECK_NEAR(counts.at(3), 200, 60);
  Sampling hot = at_temperature_one();
  hot.temperature = 2;  // shares to the power of 1/2: 2 to 1
  CHECK_NEAR(histogram(hot, logs({.8, .2})).at(1), 4000.0 / 3, 130);
  Sampling cold = at_temperature_one();
  cold.temperature = 1e-300;
  CHECK_EQ(histogram(cold, logs({.3, .4, .3})).at(1), 4000);
}

TEST(top_k_keeps_k_and_the_lower_id_of_equals) {
  Sampling sampling = at_temperature_one();
  sampling.top_k = 2;
  CHECK(tokens_of(histogram(sampling, {1, 0, 1, 1, -3})) == (std::vector<int>{0, 2}));
  sampling.top_k = 1;
  CHECK(tokens_of(histogram(sampling, {0, 1, 1})) == std::vector<int>{1});
  sampling.top_k = 100;
  CHECK_EQ(histogram(sampling, {0, 0, 0}).size(), 3);
}

TEST(top_p_keeps_what_has_less_than_p_before_it) {
  const auto logits = logs({.05, .5, .2, .25});
  Sampling sampling = at_temperature_one();
  sampling.top_p = .7;
  CHECK(tokens_of(histogram(sampling, logits)) == (std::vector<int>{1, 3}));
  sampling.top_p = .76;
  CHECK(tokens_of(histogram(sampling, logits)) == (std::vector<int>{1, 2, 3}));
  sampling.top_p = 1e-9;  // the first is always kept
  CHECK(tokens_of(histogram(sampling, logits)) == std::vector<int>{1});
}

TEST(top_p_counts_within_what_top_k_left) {
  Sampling sampling = at_temperature_one();
  sampling.top_k = 2;
  sampling.top_p = .6;  // of .4 and .2 the first has 2/3
  CHECK(tokens_of(histogram(sampling, logs({.4, .2, .2, .2}))) == std::vector<int>{0});
}

TEST(top_p_over_a_large_flat_vocabulary_keeps_its_share) {
  const std::vector<float> flat(10000, 1.0F);
  Sampling sampling = at_temperature_one();
  sampling.top_p = .3;
  Sampler sampler(sampling, 10000);
  int highest = 0;
  for (int i = 0; i < 300; ++i) highest = std::max(highest, sampler.choose(flat.data(), false, 0).token);
  CHECK(highest >= 2900);
  CHECK(highest <= 3000);
}

TEST(min_p_is_relative_to_the_best) {
  Sampling sampling = at_temperature_one();
  sampling.min_p = .45;
  CHECK(tokens_of(histogram(sampling, logs({.2, .4, .17, .23}))) == (std::vector<int>{0, 1, 3}));
  sampling.min_p = 1;
  CHECK(tokens_of(histogram(sampling, {0, 2, 2, 1})) == (std::vector<int>{1, 2}));
}

TEST(repetition_penalty_divides_positive_and_multiplies_negative_scores_of_the_prompt) {
  Sampling sampling;
  sampling.repetition_penalty = 2;
  const std::vector<float> positive{3, 2};
  Sampler first(sampling, 2);
  const int prompt = 0;
  first.see(&prompt, 1);
  CHECK_EQ(first.choose(positive.data(), false, 0).token, 1);  // 3 / 2 is below 2
  const std::vector<float> negative{-3, -5};
  Sampler second(sampling, 2);
  second.see(&prompt, 1);
  CHECK_EQ(second.choose(negative.data(), false, 0).token, 1);  // -3 * 2 is below -5
}

TEST(presence_and_frequency_penalties_count_made_tokens_only) {
  const std::vector<float> logits{3, 2, 0};
  const int prompt = 0;
  Sampling sampling;
  sampling.presence_penalty = 1.5;
  Sampler presence(sampling, 3);
  presence.see(&prompt, 1);
  CHECK_EQ(presence.choose(logits.data(), false, 0).token, 0);  // the prompt does not count
  CHECK_EQ(presence.choose(logits.data(), false, 0).token, 1);  // 1.5, 2
  CHECK_EQ(presence.choose(logits.data(), false, 0).token, 0);  // 1.5, .5
  CHECK_EQ(presence.choose(logits.data(), false, 0).token, 0);  // taken once only
  sampling.presence_penalty = 0;
  sampling.frequency_penalty = .75;
  Sampler frequency(sampling, 3);
  std::vector<int> made;
  for (int i = 0; i < 6; ++i) made.push_back(frequency.choose(logits.data(), false, 0).token);
  CHECK(made == (std::vector<int>{0, 0, 1, 0, 1, 0}));
}

TEST(logit_bias_comes_before_the_penalties) {
  Sampling sampling;
  sampling.logit_bias = {{2, 10.0F}, {0, -1.0F}};
  CHECK_EQ(choose(sampling, {3, 2.5F, 0}), 2);
  sampling.repetition_penalty = 4;
  Sampler sampler(sampling, 3);
  const int prompt = 2;
  sampler.see(&prompt, 1);
  const std::vector<float> logits{3, 2.6F, 0};
  CHECK_EQ(sampler.choose(logits.data(), false, 0).token, 1);  // 10 / 4, and 3 - 1, are below 2.6
}

TEST(the_same_seed_gives_the_same_tokens_on_every_machine) {
  std::vector<float> logits;
  for (int i = 0; i < 1000; ++i) logits.push_back(static_cast<float>(i * 7919 % 1000) / 200);
  Sampling sampling = at_temperature_one();
  sampling.seed = 42;
  std::vector<int> tokens;
  Sampler sampler(sampling, 1000);
  for (int i = 0; i < 5; ++i) tokens.push_back(sampler.choose(logits.data(), false, 0).token);
  CHECK(tokens == (std::vector<int>{742, 162, 278, 340, 38}));
  sampling.seed = 43;
  Sampler other(sampling, 1000);
  std::vector<int> others;
  for (int i = 0; i < 5; ++i) others.push_back(other.choose(logits.data(), false, 0).token);
  CHECK(others != tokens);
}

TEST(logprobs_are_the_models_own) {
  const auto logits = logs({.1, .6, .3});
  Sampling sampling;
  sampling.temperature = .5;
  sampling.logit_bias = {{0, 100.0F}};
  const Choice choice = Sampler(sampling, 3).choose(logits.data(), true, 2);
  CHECK_EQ(choice.token, 0);
  CHECK_NEAR(choice.logprob, std::log(.1), 1e-6);
  CHECK_EQ(choice.top.size(), 2);
  CHECK_EQ(choice.top[0].first, 1);
  CHECK_NEAR(choice.top[0].second, std::log(.6), 1e-6);
  CHECK_EQ(choice.top[1].first, 2);
  CHECK_EQ(Sampler({}, 3).choose(logits.data(), false, 0).logprob, 0.0F);
}

TEST(the_top_list_ranks_equals_by_id_and_nan_last) {
  const std::vector<float> logits{kNan, 1, 2, 1, 2};
  const Choice choice = Sampler({}, 5).choose(logits.data(), true, 5);
  std::vector<int> ids;
  for (const auto& [token, logprob] : choice.top) ids.push_back(token);
  CHECK(ids == (std::vector<int>{2, 4, 1, 3, 0}));
  CHECK_EQ(choice.top[4].second, -kInfinity);
}

TEST(a_token_that_is_not_allowed_is_never_chosen_and_still_counts_as_likely) {
  const std::vector<float> logits{5, kInfinity, 1, -40, kNan, 3};
  const uint32_t allowed = 0b011100;  // 2, 3, 4
  const Choice choice = Sampler({}, 6).choose(logits.data(), true, 2, &allowed);
  CHECK_EQ(choice.token, 2);
  CHECK_EQ(choice.top[0].first, 1);  // under the model itself
  const std::vector<void (*)(Sampling&)> rules{
      [](Sampling&) {},
      [](Sampling& s) { s.logit_bias = {{0, 100.0F}, {3, 100.0F}}; },
      [](Sampling& s) { s.top_k = 5; },
      [](Sampling& s) { s.top_p = 0.999; },
      [](Sampling& s) { s.min_p = 0.5; },
      [](Sampling& s) { s.repetition_penalty = 0.1; },
      [](Sampling& s) { s.temperature = 1e9; },
  };
  for (const auto change : rules) {
    Sampling sampling = at_temperature_one();
    change(sampling);
    Sampler sampler(sampling, 6);
    for (int i = 0; i < 200; ++i) {
      const int token = sampler.choose(logits.data(), false, 0, &allowed).token;
      CHECK(token == 2 || token == 3);
    }
  }
  const uint32_t none = 0b010000;  // only one that is NaN
  CHECK_THROWS_SAYING(Sampler({}, 6).choose(logits.data(), false, 0, &none), ErrorCode::numerics, "no usable logits");
}

TEST(settings_out_of_range_are_refused_by_name) {
  const auto refused = [](const char* words, void (*change)(Sampling&)) {
    Sampling sampling;
    change(sampling);
    CHECK_THROWS_SAYING(Sampler(sampling, 10), ErrorCode::usage, words);
  };
  refused("temperature is -1", [](Sampling& s) { s.temperature = -1; });
  refused("temperature is inf", [](Sampling& s) { s.temperature = HUGE_VAL; });
  refused("top_k is -1", [](Sampling& s) { s.top_k = -1; });
  refused("top_p is 0", [](Sampling& s) { s.top_p = 0; });
  refused("top_p is 1.5", [](Sampling& s) { s.top_p = 1.5; });
  refused("min_p is 2", [](Sampling& s) { s.min_p = 2; });
  refused("repetition_penalty is 0", [](Sampling& s) { s.repetition_penalty = 0; });
  refused("presence_penalty is", [](Sampling& s) { s.presence_penalty = std::nan(""); });
  refused("frequency_penalty is inf", [](Sampling& s) { s.frequency_penalty = HUGE_VAL; });
  refused("token 10, but the vocabulary has 10", [](Sampling& s) { s.logit_bias = {{10, 1.0F}}; });
  refused("logit_bias is", [](Sampling& s) { s.logit_bias = {{1, kNan}}; });
  const int beyond = 10;
  CHECK_THROWS_SAYING(Sampler({}, 10).see(&beyond, 1), ErrorCode::usage, "token 10");
  const std::vector<float> logits(10, 0.0F);
  CHECK_THROWS_SAYING(Sampler({}, 10).choose(logits.data(), false, 11), ErrorCode::usage, "top is 11");
}
