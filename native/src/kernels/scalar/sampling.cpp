// What the scalar reference does for the sampler.
#include <limits>

#include "kernels/scalar/scalar.h"
#include "kernels/weight.h"

namespace mobilemoe::scalar {

void largest(const float* scores, int count, float* largest) {
  for (int begin = 0; begin < count; begin += kScoreRun) {
    float best = -std::numeric_limits<float>::infinity();
    for (int i = begin; i < std::min(begin + kScoreRun, count); ++i) best = scores[i] > best ? scores[i] : best;
    largest[begin / kScoreRun] = best;
  }
}

uint64_t weigh(const float* scores, int count, float highest, double scale, uint64_t* weights, int16_t* buckets) {
  struct Scalar;
  return mobilemoe::weigh<Scalar>(scores, count, highest, scale, weights, buckets);
}

}  // namespace mobilemoe::scalar
