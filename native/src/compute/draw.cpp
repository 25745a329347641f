#include "compute/draw.h"

#include <algorithm>
#include <atomic>
#include <cmath>

namespace mobilemoe {
namespace {

constexpr int16_t kNoBucket = kBuckets;

// The weight, or 0 if it is below `least`: without a branch, for the compiler's vectors.
uint64_t weight_from(uint64_t least, uint64_t weight) {
  const uint64_t is_less = (weight - least) >> 63;
  return weight & (is_less - 1);
}

}  // namespace

void DrawById::prepare(const Scores& scores, double scale, uint64_t least, ThreadPool* pool) {
  scores_ = &scores;
  scale_ = scale;
  least_ = least;
  scores.weigh_runs(scale, runs_);
  blocks_.resize(divide_up(scores.size(), kBlock));
  for_blocks(pool, scores.size(), [this](int begin, int end, int) {
    uint64_t weights[kBlock];
    blocks_[begin / kBlock] = weigh(begin, end, weights);
  });
  total_ = 0;
  for (const uint64_t sum : blocks_) total_ += sum;
}

// Sets the weights of one block, 0 below `least`, and returns their sum.
uint64_t DrawById::weigh(int begin, int end, uint64_t* weights) const {
  const auto* run = runs_.data() + begin / kScoreRun;
  if (least_ == 1 &&
      std::any_of(run, run + divide_up(end - begin, kScoreRun), [](uint64_t weight) { return weight > 0; })) {
    return scores_->weigh(begin, end, scale_, weights);
  }
  uint64_t sum = 0;
  for (int first = begin; first < end; first += kScoreRun, ++run, weights += kScoreRun) {
    const int count = std::min(kScoreRun, end - first);
    if (*run < least_) {
      std::fill_n(weights, count, 0);
      continue;
    }
    scores_->weigh(first, first + count, scale_, weights);
    for (int i = 0; i < count; ++i) {
      weights[i] = weight_from(least_, weights[i]);
      sum += weights[i];
    }
  }
  return sum;
}

int DrawById::token(uint64_t number) const {
  int block = 0;
  for (; number >= blocks_[block]; ++block) number -= blocks_[block];
  uint64_t weights[kBlock];
  const int begin = block * kBlock;
  weigh(begin, std::min(scores_->size(), begin + kBlock), weights);
  int i = 0;
  for (; number >= weights[i]; ++i) number -= weights[i];
  return begin + i;
}

void DrawByRank::prepare(const Scores& scores, double scale, double top_p, uint64_t least, ThreadPool* pool) {
  scores_ = &scores;
  scale_ = scale;
  scores.weigh_runs(scale, runs_);
  // All tokens together weigh at least `sum`. Those below `bound` together weigh less than half of (1 - top_p) * sum,
  // so that the others weigh more than top_p of all.
  double sum = 0;
  for (const uint64_t weight : runs_) sum += static_cast<double>(weight);
  const auto bound = static_cast<uint64_t>(sum * (1 - top_p) / 2 / scores.size());

  const int threads = pool == nullptr ? 1 : pool->threads();
  sums_.assign(static_cast<size_t>(threads) * kBuckets, 0);
  buckets_.resize(round_up(scores.size(), kScoreRun));
  std::atomic<uint64_t> all{0}, heavy{0};
  for_blocks(pool, scores.size(), [&](int begin, int end, int thread) {
    uint64_t weights[kBlock];
    uint64_t* sums = sums_.data() + static_cast<ptrdiff_t>(thread) * kBuckets;
    uint64_t heavy_here = 0;
    all += scores.weigh(begin, end, scale, weights, buckets_.data() + begin);
    std::fill(buckets_.data() + end, buckets_.data() + round_up(end, kScoreRun), kNoBucket);
    for (int first = begin; first < end; first += kScoreRun) {
      const int last = std::min(first + kScoreRun, end);
      if (runs_[first / kScoreRun] < bound) {
        std::fill(buckets_.data() + first, buckets_.data() + last, kNoBucket);
        continue;
      }
      for (int token = first; token < last; ++token) sums[buckets_[token]] += weights[token - begin];
      if (least > 1) {
        for (int token = first; token < last; ++token) heavy_here += weight_from(least, weights[token - begin]);
      }
    }
    heavy += heavy_here;
  });
  for (int thread = 1; thread < threads; ++thread) {
    for (int i = 0; i < kBuckets; ++i) sums_[i] += sums_[static_cast<ptrdiff_t>(thread) * kBuckets + i];
  }
  const auto wanted = static_cast<uint64_t>(std::ceil(top_p * static_cast<double>(all)));
  total_ = find(std::clamp<uint64_t>(wanted, 1, all) - 1).end;
  if (least > 1) total_ = std::min<uint64_t>(total_, heavy);
}

DrawByRank::Found DrawByRank::find(uint64_t number) {
  uint64_t before = 0;
  int bucket = 0;
  for (; number - before >= sums_[bucket]; ++bucket) before += sums_[bucket];
  const auto wanted = static_cast<int16_t>(bucket);
  members_.clear();
  for (int begin = 0; begin < scores_->size(); begin += kScoreRun) {
    const int16_t* buckets = buckets_.data() + begin;
    int16_t any = 0;
    for (int i = 0; i < kScoreRun; ++i) any |= buckets[i] == wanted ? 1 : 0;  // plain, for the compiler's vectors
    if (any == 0) continue;
    for (int i = 0; i < kScoreRun; ++i) {
      if (buckets[i] == wanted) members_.push_back({(*scores_)[begin + i], begin + i, 0});
    }
  }
  scores_->weigh(members_, scale_);
  // Halves what is left until one token is.
  auto first = members_.begin();
  for (auto last = members_.end(); last - first > 1;) {
    const auto middle = first + (last - first) / 2;
    std::nth_element(first, middle, last, is_likelier);
    uint64_t sum = 0;
    for (auto member = first; member != middle; ++member) sum += member->weight;
    if (number - before < sum) {
      last = middle;
    } else {
      before += sum;
      first = middle;
    }
  }
  return {first->token, before + first->weight};
}

}  // namespace mobilemoe
