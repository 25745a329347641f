#include "compute/ahead_trial.h"

#include <algorithm>

namespace mobilemoe {

bool AheadTrial::reads_ahead() const {
  if (left_ > 0) return ahead_;
  const int burst = static_cast<int>(counts_[0] + counts_[1]) / kBurst;
  return (burst + 1) / 2 % 2 == 0;  // with, without, without, with, ...: so that a drift favours neither
}

void AheadTrial::note(double seconds) {
  if (left_ > 0) {
    --left_;
    return;
  }
  const bool ahead = reads_ahead();
  tried_[ahead][counts_[ahead]++] = seconds;
  if (counts_[0] + counts_[1] < 2 * kEach) return;
  // Medians, since another process can make any pass take long.
  for (auto& each : tried_) std::nth_element(each.begin(), each.begin() + kEach / 2, each.end());
  const bool faster = tried_[1][kEach / 2] < tried_[0][kEach / 2];
  gap_ = faster == ahead_ ? std::min(2 * gap_, kMostGap) : kLeastGap;
  ahead_ = faster;
  left_ = gap_;
  counts_ = {};
}

}  // namespace mobilemoe
