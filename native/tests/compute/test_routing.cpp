// Which experts a token visits, and with what weight.
#include <cmath>
#include <utility>
#include <vector>

#include "check.h"
#include "compute/cache_prior.h"
#include "compute/capacity.h"
#include "compute/routing.h"

using namespace mobilemoe;

namespace {

Config config_of(int experts, int active, RouterScore score, bool renormalised, double factor) {
  Config config;
  config.num_local_experts = experts;
  config.num_experts_per_tok = active;
  config.router_score = score;
  config.norm_topk_prob = renormalised;
  config.routed_scaling_factor = factor;
  return config;
}

Config sigmoid_of(int experts, int active) { return config_of(experts, active, RouterScore::sigmoid, true, 2.5); }

struct Choice {
  std::vector<int> experts;
  std::vector<float> weights;
};

Choice choose(const Config& config, const std::vector<float>& logits, const std::vector<float>& bias,
              const int* forced = nullptr) {
  const auto active = static_cast<size_t>(config.num_experts_per_tok);
  Choice choice{std::vector<int>(active, -1), std::vector<float>(active, -1)};
  std::vector<float> scores(logits.size());
  choose_experts(config, logits.data(), bias.data(), forced, scores.data(), choice.experts.data(),
                 choice.weights.data());
  return choice;
}

void check_experts(const Choice& choice, const std::vector<int>& wanted) { CHECK(choice.experts == wanted); }

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

const std::vector<float> kNoBias(8, 0.0f);

}  // namespace

TEST(routing_takes_the_best_first_and_ties_to_the_lowest_index) {
  check_experts(choose(sigmoid_of(5, 3), {-1, 2, 0, 3, 1}, kNoBias), {3, 1, 4});
  check_experts(choose(sigmoid_of(5, 3), {1, 1, 1, 1, 1}, kNoBias), {0, 1, 2});
  check_experts(choose(sigmoid_of(5, 3), {0, 2, 1, 2, 1}, kNoBias), {1, 3, 2});
  check_experts(choose(sigmoid_of(3, 2), {100, 200, 300}, kNoBias), {0, 1});  // all sigmoids are 1
  check_experts(choose(sigmoid_of(3, 3), {1, 2, 3}, kNoBias), {2, 1, 0});
}

TEST(routing_bias_chooses_but_does_not_weigh) {
  const Choice choice = choose(sigmoid_of(4, 2), {0.5f, -3, 1, -0.5f}, {0, 5, 0, 0});
  check_experts(choice, {1, 2});
  const double total = sigmoid(-3) + sigmoid(1);
  CHECK_NEAR(choice.weights[0], 2.5 * sigmoid(-3) / total, 1e-6);
  CHECK_NEAR(choice.weights[1], 2.5 * sigmoid(1) / total, 1e-6);
}

TEST(routing_ranks_nan_below_everything) {
  const float nan = std::nanf("");
  check_experts(choose(sigmoid_of(4, 3), {nan, -60, nan, 2}, kNoBias), {3, 1, 0});
  check_experts(choose(sigmoid_of(4, 2), {1, nan, 0, 2}, {-9, 0, -9, -9}), {3, 0});
  check_experts(choose(sigmoid_of(4, 2), {1, 2, 3, 0}, {0, nan, 0, 0}), {2, 0});
  check_experts(choose(sigmoid_of(3, 2), {nan, nan, nan}, kNoBias), {0, 1});
}

TEST(routing_without_renormalisation_gives_the_softmax_itself) {
  const std::vector<float> logits = {1, 3, -2, 2};
  double total = 0;
  for (const float logit : logits) total += std::exp(static_cast<double>(logit));
  const Choice plain = choose(config_of(4, 2, RouterScore::softmax, false, 1.0), logits, kNoBias);
  check_experts(plain, {1, 3});
  CHECK_NEAR(plain.weights[0], std::exp(3.0) / total, 1e-6);
  CHECK_NEAR(plain.weights[1], std::exp(2.0) / total, 1e-6);
  const Choice scaled = choose(config_of(4, 2, RouterScore::softmax, true, 1.5), logits, kNoBias);
  check_experts(scaled, {1, 3});
  CHECK_NEAR(scaled.weights[0], 1.5 * std::exp(3.0) / (std::exp(3.0) + std::exp(2.0)), 1e-6);
  const Choice large = choose(config_of(3, 1, RouterScore::softmax, false, 1.0), {900, 1000, -1000}, kNoBias);
  check_experts(large, {1});
  CHECK_NEAR(large.weights[0], 1, 1e-6);
}

TEST(routing_without_renormalisation_gives_the_sigmoid_itself) {
  const Choice choice = choose(config_of(3, 2, RouterScore::sigmoid, false, 2.0), {0, 1, -1}, kNoBias);
  check_experts(choice, {1, 0});
  CHECK_NEAR(choice.weights[0], 2 * sigmoid(1), 1e-6);
  CHECK_NEAR(choice.weights[1], 2 * sigmoid(0), 1e-6);
}

TEST(routing_weighs_forced_experts_by_their_own_scores) {
  const int forced[] = {2, 0};
  const Choice choice = choose(sigmoid_of(4, 2), {0.5f, 4, -1, 5}, {0, 0, 0, 9}, forced);
  check_experts(choice, {2, 0});
  const double total = sigmoid(-1) + sigmoid(0.5);
  CHECK_NEAR(choice.weights[0], 2.5 * sigmoid(-1) / total, 1e-6);
  CHECK_NEAR(choice.weights[1], 2.5 * sigmoid(0.5) / total, 1e-6);
}

TEST(routing_of_scores_that_vanish_is_not_a_division_by_zero) {
  const Choice choice = choose(sigmoid_of(2, 2), {-200, -200}, kNoBias);
  check_experts(choice, {0, 1});
  CHECK_EQ(choice.weights[0], 0.0f);
  CHECK_EQ(choice.weights[1], 0.0f);
}

TEST(routing_prefers_cached_experts_but_weighs_by_the_router) {
  const std::vector<float> logits = {3, 2, 1, 0, -5};
  const uint8_t cached[] = {0, 0, 0, 1, 1};
  const auto preferring = [&](float bonus, int always_top) {
    const Preference preference{cached, bonus, always_top};
    Choice choice{std::vector<int>(3), std::vector<float>(3)};
    std::vector<float> scores(10);
    choose_experts(sigmoid_of(5, 3), logits.data(), kNoBias.data(), nullptr, scores.data(), choice.experts.data(),
                   choice.weights.data(), &preference);
    return choice;
  };
  check_experts(preferring(0, 0), {0, 1, 2});
  check_experts(preferring(0.9f, 1), {0, 1, 2});
  check_experts(preferring(1.5f, 1), {0, 1, 3});
  check_experts(preferring(4, 0), {3, 0, 1});
  check_experts(preferring(9, 1), {0, 3, 4});
  check_experts(preferring(9, 3), {0, 1, 2});
  const Choice choice = preferring(9, 0);
  check_experts(choice, {3, 4, 0});
  CHECK_NEAR(choice.weights[1], 2.5 * sigmoid(-5) / (sigmoid(0) + sigmoid(-5) + sigmoid(3)), 1e-6);
}

TEST(imitated_cache_keeps_the_experts_that_were_used_last) {
  Config config = sigmoid_of(5, 2);
  config.num_hidden_layers = 2;
  RoutingOptions options;
  options.cached_experts = 3;
  CachePrior prior(config, options);
  const auto use = [&](std::vector<float> logits) {
    std::vector<float> scores(10), weights(2);
    std::vector<int> experts(2);
    prior.choose(1, logits.data(), kNoBias.data(), nullptr, scores.data(), experts.data(), weights.data());
    const uint8_t* cached = prior.cached(1);
    return std::vector<uint8_t>(cached, cached + 5);
  };
  CHECK(use({9, 8, 0, 0, 0}) == std::vector<uint8_t>({1, 1, 0, 0, 0}));
  CHECK(use({0, 0, 9, 8, 0}) == std::vector<uint8_t>({1, 0, 1, 1, 0}));  // of the first two the better one
  CHECK(use({9, 0, 0, 0, 8}) == std::vector<uint8_t>({1, 0, 1, 0, 1}));
  RoutingUse counts;
  prior.count(counts);
  CHECK_EQ(counts.hits, 1u);
  CHECK_EQ(counts.misses, 5u);
  CHECK_EQ(prior.cached(0)[0], 0);
}

namespace {

// Which pairs of a row and a slot a capacity skips, of rows that want experts 0 and 1, the odd ones 1 and 0. Weights
// fall from row to row; row 0 is not in a prompt.
std::vector<std::pair<int, int>> skipped(Skip skip, double share) {
  RoutingOptions options;
  options.capacity = share;
  options.skip = skip;
  Capacity capacity(sigmoid_of(4, 2), options);
  std::vector<int> experts;
  std::vector<float> weights;
  for (int row = 0; row < 12; ++row) {
    experts.insert(experts.end(), {row % 2, 1 - row % 2});
    weights.insert(weights.end(), {2.0f - 0.1f * static_cast<float>(row), row == 5 ? 1.45f : 0.1f});
  }
  std::vector<uint8_t> in_prompt(12, 1);
  in_prompt[0] = 0;
  const std::vector<int> before = experts;
  capacity.skip(0, 12, in_prompt.data(), experts.data(), weights.data());
  std::vector<std::pair<int, int>> found;
  for (int pair = 0; pair < 24; ++pair) {
    if (experts[pair] == kSkipped) {
      found.emplace_back(pair / 2, pair % 2);
    } else {
      CHECK_EQ(experts[pair], before[pair]);
    }
  }
  RoutingUse counts;
  capacity.count(counts);
  CHECK_EQ(counts.pairs, 22u);
  CHECK_EQ(counts.skipped, found.size());
  return found;
}

}  // namespace

TEST(capacity_skips_the_pairs_of_the_lowest_weights) {
  CHECK(skipped(Skip::pairs, 1).empty());
  const std::vector<std::pair<int, int>> lowest = {{8, 1}, {9, 1}, {10, 1}, {11, 1}};  // of equal ones the last
  CHECK(skipped(Skip::pairs, 0.82) == lowest);
  const auto many = skipped(Skip::pairs, 0.5);
  CHECK_EQ(many.size(), 11u);
  CHECK(many.back() == std::make_pair(11, 1));
  CHECK(many[10 - 1] == std::make_pair(11, 0));
  CHECK_EQ(skipped(Skip::random, 0.5).size(), 11u);
  CHECK(skipped(Skip::random, 0.5) != many);
}

TEST(capacity_of_tokens_serves_first_choices_first_and_then_tokens_by_their_largest_weight) {
  // 22 pairs, 4 experts: at most round(0.9 * 5.5) = 5 each. Of first choices expert 0 has five and expert 1 six.
  const std::vector<std::pair<int, int>> wanted = {{1, 1}, {2, 1}, {3, 1}, {4, 1},  {5, 1},  {6, 1},
                                                   {7, 1}, {8, 1}, {9, 1}, {10, 1}, {11, 0}, {11, 1}};
  CHECK(skipped(Skip::tokens, 0.9) == wanted);
  // At most six: expert 0 takes one second choice, that of row 1.
  CHECK(skipped(Skip::tokens, 1).front() == std::make_pair(2, 1));
}
