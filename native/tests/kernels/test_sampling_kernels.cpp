// The kernels of the sampler: the highest score of each run, and probabilities as whole numbers.
#include <algorithm>

#include "kernel_grid.h"
#include "kernels/weight.h"

using namespace mobilemoe;
using namespace mobilemoe::grid;

namespace {

constexpr int kCounts[] = {1, 15, 64, 65, 200, 1000};

// Scores up to 0, with gaps where they are not usable.
std::vector<float> random_scores(Random& random, int count) {
  std::vector<float> scores(static_cast<size_t>(count));
  for (float& score : scores) {
    const unsigned kind = random.below(20);
    score = kind == 0 ? NAN : kind == 1 ? -NAN : kind == 2 ? -INFINITY : random.uniform(-40, 0);
  }
  return scores;
}

}  // namespace

TEST(the_largest_of_each_run_ignores_nan) {
  Random random(11);
  for (const int count : kCounts) {
    const std::vector<float> scores = random_scores(random, count);
    const size_t runs = static_cast<size_t>((count + kScoreRun - 1) / kScoreRun);
    std::vector<float> wanted(runs, -INFINITY);
    for (int i = 0; i < count; ++i) {
      if (scores[i] > wanted[i / kScoreRun]) wanted[i / kScoreRun] = scores[i];
    }
    for_each_isa([&](const Kernels& kernels) {
      std::vector<float> largest(runs);
      kernels.largest(scores.data(), count, largest.data());
      CHECK(largest == wanted);
    });
  }
  const std::vector<float> none(70, NAN);
  for_each_isa([&](const Kernels& kernels) {
    float largest[2];
    kernels.largest(none.data(), 70, largest);
    CHECK_EQ(largest[0], -INFINITY);
    CHECK_EQ(largest[1], -INFINITY);
  });
}

TEST(weights_are_powers_of_e_within_a_unit_and_the_same_everywhere) {
  Random random(12);
  for (const int count : kCounts) {
    std::vector<float> scores = random_scores(random, count);
    scores[0] = 0;
    for (const double scale : {1.0, 1 / 0.7, 0.01, 1e300}) {
      std::vector<uint64_t> wanted(scores.size());
      std::vector<int16_t> wanted_buckets(scores.size());
      const Weighing weighing = {scale, 0, -INFINITY};
      const uint64_t sum = reference().weigh(scores.data(), count, weighing, wanted.data(), wanted_buckets.data());
      uint64_t added = 0;
      CHECK_EQ(wanted[0], kOne);
      for (int i = 0; i < count; ++i) {
        const double exact = std::isnan(scores[i]) ? 0 : std::exp(static_cast<double>(scores[i]) * scale);
        CHECK_NEAR(wanted[i], exact * static_cast<double>(kOne), 0.51);
        added += wanted[i];
      }
      CHECK_EQ(sum, added);
      for_each_isa([&](const Kernels& kernels) {
        std::vector<uint64_t> weights(scores.size());
        std::vector<int16_t> buckets(scores.size());
        CHECK_EQ(kernels.weigh(scores.data(), count, weighing, weights.data(), buckets.data()), sum);
        check_same_bytes(weights, wanted, "weights");
        check_same_bytes(buckets, wanted_buckets, "buckets");
        CHECK_EQ(kernels.weigh(scores.data(), count, weighing, weights.data(), nullptr), sum);
      });
    }
  }
}

TEST(scores_below_the_lowest_weigh_nothing_and_the_others_as_before) {
  Random random(14);
  for (const int count : kCounts) {
    const std::vector<float> scores = random_scores(random, count);
    for (const float lowest : {0.0f, -3.0f, scores[0], -45.0f}) {
      for (const double scale : {1.0, 0.01, 1e300}) {
        for_each_isa([&](const Kernels& kernels) {
          std::vector<uint64_t> all(scores.size()), kept(scores.size());
          kernels.weigh(scores.data(), count, {scale, 0, -INFINITY}, all.data(), nullptr);
          const uint64_t sum = kernels.weigh(scores.data(), count, {scale, 0, lowest}, kept.data(), nullptr);
          uint64_t added = 0;
          for (int i = 0; i < count; ++i) {
            CHECK_EQ(kept[i], scores[i] < lowest ? 0 : all[i]);
            added += kept[i];
          }
          CHECK_EQ(sum, added);
        });
      }
    }
  }
}

TEST(scores_that_are_not_allowed_become_minus_infinity) {
  Random random(15);
  for (const int count : kCounts) {
    const std::vector<float> scores = random_scores(random, count);
    std::vector<uint32_t> allowed(static_cast<size_t>(count + 31) / 32);
    for (uint32_t& word : allowed) word = random.below(4) == 0 ? ~0U : random.below(~0U);
    std::vector<float> wanted(scores);
    for (int i = 0; i < count; ++i) {
      if ((allowed[i / 32] >> i % 32 & 1) == 0) wanted[i] = -INFINITY;
    }
    for_each_isa([&](const Kernels& kernels) {
      std::vector<float> found(scores.size());
      kernels.allow(scores.data(), count, allowed.data(), found.data());
      check_same_bytes(found, wanted, "scores");
    });
  }
}

TEST(all_scores_of_a_range_are_found_in_order) {
  Random random(16);
  for (const int count : kCounts) {
    std::vector<float> scores = random_scores(random, count);
    scores[0] = -5;
    for (const auto& [low, high] : {std::pair{-5.0f, -5.0f}, {-20.0f, -10.0f}, {-6.0f, INFINITY}, {-41.0f, 0.0f}}) {
      std::vector<int> wanted;
      for (int i = 0; i < count; ++i) {
        if (scores[i] >= low && scores[i] <= high) wanted.push_back(i);
      }
      for_each_isa([&, low = low, high = high](const Kernels& kernels) {
        std::vector<int> found(scores.size() + 16);
        const int size = kernels.between(scores.data(), count, low, high, found.data());
        found.resize(static_cast<size_t>(size));
        CHECK(found == wanted);
      });
    }
  }
}

TEST(a_lower_score_never_has_an_earlier_bucket) {
  Random random(13);
  std::vector<float> scores;
  for (int i = 0; i < 2000; ++i) scores.push_back(random.uniform(-50, 0));
  scores.push_back(0);
  std::sort(scores.begin(), scores.end());
  std::vector<uint64_t> weights(scores.size());
  std::vector<int16_t> buckets(scores.size());
  for_each_isa([&](const Kernels& kernels) {
    kernels.weigh(scores.data(), static_cast<int>(scores.size()), {1, 0, -INFINITY}, weights.data(), buckets.data());
    CHECK(std::is_sorted(buckets.rbegin(), buckets.rend()));
    CHECK(std::is_sorted(weights.begin(), weights.end()));
    CHECK_EQ(buckets.back(), 0);
    CHECK(buckets.front() < kBuckets);
  });
}

TEST(sums_of_powers_are_those_of_double_arithmetic_for_any_scale_and_count) {
  Random random(17);
  for (const int count : {1, 16, 127, 128, 200, 1000}) {
    for (const double factor : {0.05, 1.4426950408889634, 2.061, 700.0}) {
      for (const double offset : {0.0, -999.0, 413.0}) {
        Powers powers;
        powers.factor = static_cast<float>(factor);
        powers.factor_rest = static_cast<float>(factor - powers.factor);
        powers.offset = static_cast<float>(offset);
        powers.lowest = static_cast<float>((-60 - offset) / factor);
        std::vector<float> scores(static_cast<size_t>(count));
        for (float& score : scores) {
          const unsigned kind = random.below(20);
          const float exponent = random.uniform(-50, 0);
          score = kind == 0 ? NAN : kind == 1 ? -INFINITY : static_cast<float>((exponent - offset) / factor);
        }
        const float middle = static_cast<float>((-2 - offset) / factor);
        const float least[] = {powers.lowest, middle, INFINITY};
        double wanted[3] = {};
        for (const float score : scores) {
          for (int i = 0; i < 3; ++i) wanted[i] += score >= least[i] ? std::exp2(score * factor + offset) : 0;
        }
        for_each_isa([&](const Kernels& kernels) {
          double one = -1, three[3] = {-1, -1, -1};
          kernels.add_powers(scores.data(), count, powers, least, &one);
          kernels.add_three_powers(scores.data(), count, powers, least, three);
          CHECK_NEAR(one, wanted[0], wanted[0] * 0x1.7p-22);
          for (int i = 0; i < 3; ++i) CHECK_NEAR(three[i], wanted[i], wanted[i] * 0x1.7p-22);
        });
      }
    }
  }
}
