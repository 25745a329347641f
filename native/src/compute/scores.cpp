#include "compute/scores.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>

#include "error.h"

namespace mobilemoe {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The largest one where there is none so large.
float nearest_float(double number) {
  constexpr double kMost = std::numeric_limits<float>::max();
  return static_cast<float>(std::clamp(number, -kMost, kMost));
}

float usable(float score) { return std::isnan(score) ? -kInfinity : score; }

// Floats as integers of the same order, from NaN with a sign up to NaN without.
int32_t order_of(float score) {
  int32_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  return bits < 0 ? bits ^ std::numeric_limits<int32_t>::max() : bits;
}

float float_at(int32_t order) {
  const int32_t bits = order < 0 ? order ^ std::numeric_limits<int32_t>::max() : order;
  float score;
  std::memcpy(&score, &bits, sizeof score);
  return score;
}

// The highest number that `count` of these reach, if there are so many; the numbers lose their order.
float reached_by(int count, std::vector<float>& numbers) {
  if (count > static_cast<int>(numbers.size())) return -kInfinity;
  std::nth_element(numbers.begin(), numbers.begin() + count - 1, numbers.end(), std::greater<>());
  return numbers[count - 1];
}

}  // namespace

void Scores::read(const float* scores, int size, const ScoreChanges* changes, ThreadPool* pool) {
  scores_ = scores;
  changes_ = changes;
  size_ = size;
  largest_.resize(divide_up(size, kScoreRun));
  block_largest_.resize(divide_up(size, kBlock));
  for_blocks(pool, size, [this](int begin, int end, int) {
    float* largest = largest_.data() + begin / kScoreRun;
    float* last = largest + divide_up(end - begin, kScoreRun);
    if (changes_ == nullptr || changes_->allow_any(begin, end)) {
      float buffer[kBlock];
      kernels_.largest(at(begin, end, buffer), end - begin, largest);
    } else {
      std::fill(largest, last, -kInfinity);
    }
    block_largest_[begin / kBlock] = *std::max_element(largest, last);
  });
  highest_ = *std::max_element(block_largest_.begin(), block_largest_.end());
}

int Scores::best() const {
  if (highest_ == -kInfinity) {
    throw Error(ErrorCode::numerics, "the model gave no usable logits: its weights hold NaN");
  }
  const auto block = std::find(block_largest_.begin(), block_largest_.end(), highest_) - block_largest_.begin();
  const auto first = largest_.begin() + block * (kBlock / kScoreRun);
  const int begin = static_cast<int>(std::find(first, largest_.end(), highest_) - largest_.begin()) * kScoreRun;
  float buffer[kScoreRun];
  const int end = std::min(begin + kScoreRun, size_);
  const float* run = at(begin, end, buffer);
  return begin + static_cast<int>(std::find(run, run + end - begin, highest_) - run);
}

// First of blocks, then of the runs which reach what so many blocks do.
float Scores::reached(int count) const {
  std::vector<float> largest = block_largest_;
  const float bound_of_blocks = reached_by(count, largest);
  largest.clear();
  std::copy_if(largest_.begin(), largest_.end(), std::back_inserter(largest),
               [&](float score) { return score >= bound_of_blocks; });
  return reached_by(count, largest);
}

void Scores::likeliest(int count, std::vector<Candidate>& best) const {
  best.clear();
  count = std::min(count, size_);
  if (count == 0) return;
  const float bound = reached(count);  // by at least so many tokens
  int equal = 0;
  for (int begin = 0; begin < size_; begin += kScoreRun) {
    if (largest_[begin / kScoreRun] < bound) continue;
    float buffer[kScoreRun];
    const int here = std::min(kScoreRun, size_ - begin);
    const float* scores = at(begin, begin + here, buffer);
    for (int i = 0; i < here; ++i) {
      const float score = usable(scores[i]);
      if (score > bound || (score == bound && equal++ < count)) best.push_back({score, begin + i, 0});
    }
  }
  std::nth_element(best.begin(), best.begin() + count - 1, best.end(), is_likelier);
  best.resize(count);
  std::sort(best.begin(), best.end(), is_likelier);
}

bool Scores::powers(double scale, Powers& powers, double& unit) const {
  constexpr double kGrid = 0x1p13, kDepth = 60;  // 2^-60 is nothing
  const double factor = scale * kLog2E, offset = -factor * highest_;
  if (!(factor > 0x1p-20 && factor < 0x1p10 && std::abs(offset) < 1000)) return false;
  const double coarse = std::rint(offset * kGrid) / kGrid;
  powers.factor = static_cast<float>(factor);
  powers.factor_rest = static_cast<float>(factor - powers.factor);
  powers.offset = static_cast<float>(coarse);
  powers.lowest = static_cast<float>(highest_ - kDepth / factor);
  unit = std::exp2(offset - coarse);
  return true;
}

double Scores::sum_exp(ThreadPool* pool) {
  Powers e;
  double unit = 1;
  const bool is_fast = powers(1, e, unit);
  block_sums_.resize(divide_up(size_, kBlock));
  for_blocks(pool, size_, [&](int begin, int end, int) {
    float buffer[kBlock];
    const float* scores = at(begin, end, buffer);
    double& sum = block_sums_[begin / kBlock];
    if (is_fast) {
      kernels_.add_powers(scores, end - begin, e, &e.lowest, &sum);
    } else {
      std::transform(scores, scores + end - begin, buffer, usable);
      sum = kernels_.sum_exp(buffer, end - begin, highest_);
    }
  });
  return std::accumulate(block_sums_.begin(), block_sums_.end(), 0.0) * unit;
}

Weighing Scores::weighing(double scale, uint64_t least) const {
  const Weighing all = {scale, highest_, -kInfinity};
  if (least == 1) return all;
  int32_t low = order_of(-kInfinity), high = order_of(highest_);  // weighs less, and does not
  while (high - static_cast<int64_t>(low) > 1) {
    const auto middle = static_cast<int32_t>((static_cast<int64_t>(low) + high) / 2);
    const float score = float_at(middle);
    uint64_t weight;
    kernels_.weigh(&score, 1, all, &weight, nullptr);
    (weight < least ? low : high) = middle;
  }
  return {scale, highest_, float_at(high)};
}

uint64_t Scores::weigh(std::vector<Candidate>& candidates, double scale) const {
  uint64_t sum = 0;
  weigh_each(candidates, weighing(scale),
             [&](Candidate& candidate, uint64_t weight, int) { sum += candidate.weight = weight; });
  return sum;
}

// Calls work(candidate, weight, bucket) for each of them.
template <class Work>
void Scores::weigh_each(std::vector<Candidate>& candidates, const Weighing& weighing, const Work& work) const {
  float scores[kScoreRun];
  uint64_t weights[kScoreRun];
  int16_t buckets[kScoreRun];
  for (size_t begin = 0; begin < candidates.size(); begin += kScoreRun) {
    const size_t count = std::min<size_t>(kScoreRun, candidates.size() - begin);
    for (size_t i = 0; i < count; ++i) scores[i] = candidates[begin + i].score;
    kernels_.weigh(scores, static_cast<int>(count), weighing, weights, buckets);
    for (size_t i = 0; i < count; ++i) work(candidates[begin + i], weights[i], buckets[i]);
  }
}

void Scores::weigh_runs(const Weighing& weighing, std::vector<uint64_t>& weights) const {
  weights.resize(largest_.size());
  kernels_.weigh(largest_.data(), static_cast<int>(largest_.size()), weighing, weights.data(), nullptr);
}

int Scores::bucket_of(float score, const Weighing& weighing) const {
  uint64_t weight;
  int16_t bucket;
  kernels_.weigh(&score, 1, weighing, &weight, &bucket);
  return bucket;
}

void Scores::gather(ScoreRange range, ThreadPool* pool, std::vector<std::vector<Candidate>>& found) const {
  found.resize(pool == nullptr ? 1 : pool->threads());
  for (auto& candidates : found) candidates.clear();
  for_pieces(pool, size_, [&](int begin, int end, int thread) {
    if (!any_reaches(range.low, begin, end)) return;
    float buffer[kPiece];
    int places[kPiece + 16];
    const float* scores = at(begin, end, buffer);
    const int count = kernels_.between(scores, end - begin, range.low, range.high, places);
    for (int i = 0; i < count; ++i) found[thread].push_back({scores[places[i]], begin + places[i], 0});
  });
}

void Scores::find(int bucket, const Weighing& weighing, ThreadPool* pool, std::vector<std::vector<Candidate>>& found,
                  std::vector<Candidate>& members) const {
  // The scores of a bucket lie between these, which are further apart than rounding needs.
  const double step = kBucketWidth / (weighing.scale * kLog2E), highest = highest_, margin = 0x1p-20;
  const double from = highest - (bucket + 1) * step, to = highest - bucket * step;
  const float low = nearest_float(from - margin * (std::abs(from) + std::abs(highest)));
  const float high = nearest_float(to + margin * (std::abs(to) + std::abs(highest)));
  gather({low, high}, pool, found);
  members.clear();
  for (auto& candidates : found) {
    weigh_each(candidates, weighing, [&](const Candidate& candidate, uint64_t weight, int its_bucket) {
      if (its_bucket == bucket) members.push_back({candidate.score, candidate.token, weight});
    });
  }
}

}  // namespace mobilemoe
