#include <random>

#include "check.h"
#include "compute/ahead_trial.h"

namespace mobilemoe {
namespace {

// Passes that take so many seconds with reading ahead and without, give or take 30%, one in ten three times as long.
class Passes {
 public:
  // The share of `count` passes that read ahead.
  double share_ahead(int count, double with, double without) {
    std::uniform_real_distribution<double> noise(0.7, 1.3), chance(0, 1);
    int ahead = 0;
    for (int pass = 0; pass < count; ++pass) {
      ahead += trial_.reads_ahead() ? 1 : 0;
      const double stalled = chance(random_) < 0.1 ? 3 : 1;
      trial_.note((trial_.reads_ahead() ? with : without) * noise(random_) * stalled);
    }
    return static_cast<double>(ahead) / count;
  }

 private:
  AheadTrial trial_;
  std::mt19937 random_{1};
};

TEST(reading_ahead_is_given_up_where_it_is_slower) {
  Passes passes;
  CHECK_EQ(passes.share_ahead(32, 0.014, 0.010), 1.0);
  CHECK_EQ(passes.share_ahead(32, 0.014, 0.010), 0.5);  // the first trial
  CHECK(passes.share_ahead(4000, 0.014, 0.010) < 0.05);
}

TEST(reading_ahead_goes_on_where_it_is_faster) {
  Passes passes;
  CHECK(passes.share_ahead(4000, 0.010, 0.014) > 0.95);
}

TEST(reading_ahead_follows_a_disk_that_changes) {
  Passes passes;
  passes.share_ahead(1000, 0.014, 0.010);
  CHECK(passes.share_ahead(4000, 0.010, 0.020) > 0.6);
  CHECK(passes.share_ahead(8000, 0.020, 0.010) < 0.6);
}

}  // namespace
}  // namespace mobilemoe
