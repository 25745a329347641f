#include "compute/pass_costs.h"

#include <algorithm>
#include <cmath>

namespace mobilemoe {
namespace {

constexpr int kEnough = 3;            // measurements, as the first may have been disturbed
constexpr int64_t kForgotten = 1024;  // passes: a cost that was too high for drafts is then tried again

// Where nothing is known: memory is read once for all rows, but more rows choose more experts.
double grown(double seconds, int rows, int wanted) { return seconds * std::cbrt(static_cast<double>(wanted) / rows); }

}  // namespace

void PassCosts::note(int rows, double seconds) {
  if (rows < 1 || rows > kMostRows) return;
  ++passes_;
  Cost& cost = costs_[rows];
  if (passes_ - cost.latest >= kForgotten) cost.measured = 0;
  cost.latest = passes_;
  cost.recent[cost.measured++ % kRecent] = seconds;
  // Of the latest the third or so from below: other programs take away time from long and short passes alike, and what
  // counts is their ratio.
  std::array<double, kRecent> sorted = cost.recent;
  const auto end = sorted.begin() + std::min<int64_t>(cost.measured, kRecent);
  const auto low = sorted.begin() + (end - sorted.begin()) / 3;
  std::nth_element(sorted.begin(), low, end);
  cost.seconds = *low;
}

bool PassCosts::is_known(int rows) const {
  const Cost& cost = costs_[rows];
  return cost.measured >= kEnough && passes_ - cost.latest < kForgotten;
}

double PassCosts::of(int rows) const {
  rows = std::clamp(rows, 1, kMostRows);
  for (int distance = 0; distance < kMostRows; ++distance) {  // the nearest that is known, of fewer rows if it can be
    for (const int near : {rows - distance, rows + distance}) {
      if (near >= 1 && near <= kMostRows && is_known(near)) return grown(costs_[near].seconds, near, rows);
    }
  }
  return 0;
}

}  // namespace mobilemoe
