#include "compute/scores.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "error.h"

namespace mobilemoe {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

}  // namespace

void Scores::read(const float* scores, int size, ThreadPool* pool) {
  scores_ = scores;
  size_ = size;
  largest_.resize(divide_up(size, kScoreRun));
  for_blocks(pool, size, [this](int begin, int end, int) {
    kernels_.largest(scores_ + begin, end - begin, largest_.data() + begin / kScoreRun);
  });
  highest_ = *std::max_element(largest_.begin(), largest_.end());
}

int Scores::best() const {
  if (highest_ == -kInfinity) {
    throw Error(ErrorCode::numerics, "the model gave no usable logits: its weights hold NaN");
  }
  const auto run = std::find(largest_.begin(), largest_.end(), highest_) - largest_.begin();
  return static_cast<int>(std::find(scores_ + run * kScoreRun, scores_ + size_, highest_) - scores_);
}

void Scores::likeliest(int count, std::vector<Candidate>& best) const {
  best.clear();
  count = std::min(count, size_);
  if (count == 0) return;
  float bound = -kInfinity;  // at least `count` tokens have this score or a higher one
  if (count <= static_cast<int>(largest_.size())) {
    std::vector<float> largest = largest_;
    std::nth_element(largest.begin(), largest.begin() + count - 1, largest.end(), std::greater<>());
    bound = largest[count - 1];
  }
  int equal = 0;
  for (int begin = 0; begin < size_; begin += kScoreRun) {
    if (largest_[begin / kScoreRun] < bound) continue;
    for (int token = begin; token < std::min(begin + kScoreRun, size_); ++token) {
      if (scores_[token] < bound) continue;
      const float score = std::isnan(scores_[token]) ? -kInfinity : scores_[token];
      if (score > bound || (score == bound && equal++ < count)) best.push_back({score, token, 0});
    }
  }
  std::nth_element(best.begin(), best.begin() + count - 1, best.end(), is_likelier);
  best.resize(count);
  std::sort(best.begin(), best.end(), is_likelier);
}

uint64_t Scores::weigh(std::vector<Candidate>& candidates, double scale) const {
  float scores[kScoreRun];
  uint64_t weights[kScoreRun];
  uint64_t sum = 0;
  for (size_t begin = 0; begin < candidates.size(); begin += kScoreRun) {
    const size_t count = std::min<size_t>(kScoreRun, candidates.size() - begin);
    for (size_t i = 0; i < count; ++i) scores[i] = candidates[begin + i].score;
    sum += kernels_.weigh(scores, static_cast<int>(count), highest_, scale, weights, nullptr);
    for (size_t i = 0; i < count; ++i) candidates[begin + i].weight = weights[i];
  }
  return sum;
}

void Scores::weigh_runs(double scale, std::vector<uint64_t>& weights) const {
  weights.resize(largest_.size());
  kernels_.weigh(largest_.data(), static_cast<int>(largest_.size()), highest_, scale, weights.data(), nullptr);
}

}  // namespace mobilemoe
