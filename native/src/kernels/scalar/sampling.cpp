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

struct Scalar;

uint64_t weigh(const float* scores, int count, const Weighing& weighing, uint64_t* weights, int16_t* buckets) {
  return mobilemoe::weigh<Scalar>(scores, count, weighing, weights, buckets);
}

void allow(const float* scores, int count, const uint32_t* allowed, float* out) {
  for (int i = 0; i < count; ++i) {
    out[i] = (allowed[i / 32] >> i % 32 & 1) != 0 ? scores[i] : -std::numeric_limits<float>::infinity();
  }
}

int between(const float* scores, int count, float low, float high, int* found) {
  int size = 0;
  for (int i = 0; i < count; ++i) {
    if (scores[i] >= low && scores[i] <= high) found[size++] = i;
  }
  return size;
}

}  // namespace mobilemoe::scalar
