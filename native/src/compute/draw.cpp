#include "compute/draw.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>

namespace mobilemoe {

void DrawById::prepare(const Scores& scores, double scale, uint64_t least, ThreadPool* pool) {
  scores_ = &scores;
  weighing_ = scores.weighing(scale, least);
  scores.weigh_runs(weighing_, runs_);
  pieces_.resize(divide_up(scores.size(), kPiece));
  for_pieces(pool, scores.size(), [this](int begin, int end, int) {
    uint64_t weights[kPiece];
    pieces_[begin / kPiece] = weigh(begin, end, weights);
  });
  total_ = 0;
  for (const uint64_t sum : pieces_) total_ += sum;
}

// Sets the weights, and returns their sum.
uint64_t DrawById::weigh(int begin, int end, uint64_t* weights) const {
  const auto* run = runs_.data() + begin / kScoreRun;
  if (std::any_of(run, run + divide_up(end - begin, kScoreRun), [](uint64_t weight) { return weight > 0; })) {
    return scores_->weigh(begin, end, weighing_, weights);
  }
  std::fill_n(weights, end - begin, 0);
  return 0;
}

int DrawById::token(uint64_t number) const {
  int piece = 0;
  for (; number >= pieces_[piece]; ++piece) number -= pieces_[piece];
  uint64_t weights[kPiece];
  const int begin = piece * kPiece;
  weigh(begin, std::min(scores_->size(), begin + kPiece), weights);
  int i = 0;
  for (; number >= weights[i]; ++i) number -= weights[i];
  return begin + i;
}

void DrawByRank::prepare(const Scores& scores, double scale, double top_p, uint64_t least, ThreadPool* pool) {
  scores_ = &scores;
  pool_ = pool;
  weighing_ = scores.weighing(scale);
  scores.weigh_runs(weighing_, runs_);
  // All tokens together weigh at least `sum`. Those below `bound` together weigh less than half of (1 - top_p) * sum,
  // so that the others weigh more than top_p of all.
  double sum = 0;
  for (const uint64_t weight : runs_) sum += static_cast<double>(weight);
  const auto bound = static_cast<uint64_t>(sum * (1 - top_p) / 2 / scores.size());

  sums_.resize(pool == nullptr ? 1 : pool->threads());
  for (Sums& sums : sums_) sums.has_begun = false;
  for_pieces(pool, scores.size(), [&](int begin, int end, int thread) {
    uint64_t weights[kPiece];
    int16_t buckets[kPiece];
    Sums& sums = sums_[thread];
    if (!sums.has_begun) {
      sums.has_begun = true;
      sums.all = 0;
      for (auto& part : sums.of_bucket) std::fill(std::begin(part), std::end(part), 0);
    }
    sums.all += scores.weigh(begin, end, weighing_, weights, buckets);
    const int padded = round_up(end - begin, kScoreRun);
    std::fill(weights + end - begin, weights + padded, 0);
    std::fill(buckets + end - begin, buckets + padded, 0);
    for (int first = 0; first < padded; first += kScoreRun) {
      if (runs_[(begin + first) / kScoreRun] < bound) continue;
      for (int i = first; i < first + kScoreRun; i += kParts) {
        for (int part = 0; part < kParts; ++part) sums.of_bucket[part][buckets[i + part]] += weights[i + part];
      }
    }
  });
  uint64_t all = 0;
  buckets_.assign(kBuckets, 0);
  for (const Sums& sums : sums_) {
    if (!sums.has_begun) continue;
    all += sums.all;
    for (const auto& part : sums.of_bucket) {
      for (int i = 0; i < kBuckets; ++i) buckets_[i] += part[i];
    }
  }
  const auto wanted = static_cast<uint64_t>(std::ceil(top_p * static_cast<double>(all)));
  const uint64_t last = std::clamp<uint64_t>(wanted, 1, all) - 1;
  total_ = all;
  if (least > 1) {
    const int bucket = scores.bucket_of(scores.weighing(scale, least).lowest, weighing_);
    if (bucket <= bucket_at(last).bucket) total_ = weight_from(least, bucket);
  }
  if (last < total_) total_ = std::min(total_, find(last).end);
}

// Of all tokens that weigh at least so much, the lightest of which are in this bucket.
uint64_t DrawByRank::weight_from(uint64_t least, int bucket) {
  uint64_t sum = std::accumulate(buckets_.begin(), buckets_.begin() + bucket, uint64_t{0});
  scores_->find(bucket, weighing_, pool_, found_, members_);
  for (const Candidate& member : members_) sum += member.weight >= least ? member.weight : 0;
  return sum;
}

DrawByRank::Place DrawByRank::bucket_at(uint64_t number) const {
  Place place = {0, 0};
  for (; number - place.before >= buckets_[place.bucket]; ++place.bucket) place.before += buckets_[place.bucket];
  return place;
}

DrawByRank::Found DrawByRank::find(uint64_t number) {
  auto [bucket, before] = bucket_at(number);
  scores_->find(bucket, weighing_, pool_, found_, members_);
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
