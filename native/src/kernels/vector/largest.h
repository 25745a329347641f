// The largest of each run of scores. S is the Simd struct of an instruction set.
#pragma once

#include "kernels/kernels.h"
#include "kernels/vector/math.h"

namespace mobilemoe::vector {

template <class S>
inline float largest_of_run(const float* scores) {
  typename S::F best = S::set(-__builtin_inff());
  for (int i = 0; i < kScoreRun; i += 16) best = S::larger(S::load(scores + i), best);
  return largest_lane<S>(best);
}

template <class S>
void largest(const float* scores, int count, float* largest) {
  const int whole = count / kScoreRun;
  for (int run = 0; run < whole; ++run) largest[run] = largest_of_run<S>(scores + run * kScoreRun);
  if (count % kScoreRun == 0) return;
  float tail[kScoreRun];
  for (int i = 0; i < kScoreRun; ++i)
    tail[i] = whole * kScoreRun + i < count ? scores[whole * kScoreRun + i] : -__builtin_inff();
  largest[whole] = largest_of_run<S>(tail);
}

}  // namespace mobilemoe::vector
