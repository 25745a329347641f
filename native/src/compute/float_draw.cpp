#include "compute/float_draw.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace mobilemoe {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kError = 0x1.7p-22;  // of Kernels::add_powers, relative

constexpr int kHeavyRuns = 32;  // all tokens above the likeliest one of so many runs are in the sample
constexpr int kSampleChunk = 32, kSampleChunks = 128;
constexpr int kBins = 2048, kMemberBins = 256;
constexpr double kDeviations = 3;                 // of the sample's estimate, that a range reaches to both sides
constexpr size_t kMostMembers = size_t{1} << 14;  // of a range; with more, exact weights are as fast

}  // namespace

bool FloatDraw::begin(const Scores& scores, double scale) {
  scores_ = &scores;
  return scores.powers(scale, powers_, unit_);
}

// Of the exact sum whose powers add up to `sum`: each weight is rounded to a unit.
FloatDraw::Bounds FloatDraw::bounds(double sum) const {
  if (sum == 0) return {0, 0};
  const double weight = sum * unit_ * static_cast<double>(kOne), error = weight * kError + scores_->size();
  return {weight - error, weight + error};
}

std::optional<int> FloatDraw::by_id(const Scores& scores, double scale, uint64_t least, double uniform,
                                    ThreadPool* pool) {
  if (!begin(scores, scale)) return {};
  const Weighing weighing = scores.weighing(scale, least);
  const float lowest = std::max(weighing.lowest, powers_.lowest);
  sums_.resize(divide_up(scores.size(), kPiece));
  for_pieces(pool, scores.size(), [&](int first, int last, int) {
    double& sum = sums_[first / kPiece][0];
    sum = 0;
    if (!scores.any_reaches(lowest, first, last)) return;
    float buffer[kPiece];
    kernels_.add_powers(scores.at(first, last, buffer), last - first, powers_, &lowest, &sum);
  });
  double total = 0, before = 0;
  for (const auto& sum : sums_) total += sum[0];
  const double number = uniform * total;
  size_t piece = 0;
  for (; piece + 1 < sums_.size() && before + sums_[piece][0] <= number; ++piece) before += sums_[piece][0];

  const auto [least_total, most_total] = bounds(total);
  const auto [least_before, most_before] = bounds(before);
  double low = uniform * least_total - 1 - most_before;
  const double high = uniform * most_total - least_before;
  if (low < 0 && piece > 0) return {};
  low = std::max(low, 0.0);
  uint64_t weights[kPiece];
  const int first = static_cast<int>(piece) * kPiece, last = std::min(scores.size(), first + kPiece);
  scores.weigh(first, last, weighing, weights);
  uint64_t end = 0;
  for (int i = 0; i < last - first; ++i) {
    end += weights[i];
    if (low >= static_cast<double>(end)) continue;
    if (high >= static_cast<double>(end)) return {};
    return first + i;
  }
  return {};
}

std::optional<int> FloatDraw::by_rank(const Scores& scores, double scale, double top_p, uint64_t least, double uniform,
                                      ThreadPool* pool) {
  if (!begin(scores, scale)) return {};
  const Weighing weighing = scores.weighing(scale);
  const float lowest = least > 1 ? scores.weighing(scale, least).lowest : -kInfinity;
  sample(weighing, top_p);
  // The last token of those that weigh top_p of all lies in the first range, the one to be drawn in the second.
  const double kept = std::min(top_p * estimated_, estimate(lowest));
  std::array<ScoreRange, 2> ranges = {range_of(top_p * estimated_), range_of(uniform * kept)};
  const bool is_by_least = lowest > ranges[0].high;
  if (is_by_least) ranges[0] = {kInfinity, kInfinity};
  const auto above = [](float score) { return std::nextafter(score, kInfinity); };
  look(ranges, {-kInfinity, is_by_least ? lowest : above(ranges[0].high), above(ranges[1].high)}, pool);

  const Bounds all = bounds(sum_[0]), before = bounds(sum_[1]), before_drawn = bounds(sum_[2]);
  Bounds total = before;
  if (is_by_least) {
    if (before.high >= top_p * all.low - 1) return {};
  } else {
    const Bounds number = {top_p * all.low - 1 - before.high, top_p * all.high - before.low};
    const auto last = place(0, ranges[0], weighing, number);
    if (!last) return {};
    double most = kInfinity;  // of members that weigh enough
    if (lowest > ranges[0].low) {
      uint64_t sum = 0;
      const std::vector<float>& members = found_[0][0].scores;
      for (size_t i = 0; i < members.size(); ++i) sum += members[i] >= lowest ? weights_[i] : 0;
      most = static_cast<double>(sum);
    }
    total = {before.low + std::min(last->end.low, most), before.high + std::min(last->end.high, most)};
  }
  const Bounds number = {uniform * total.low - 1 - before_drawn.high, uniform * total.high - before_drawn.low};
  const auto drawn = place(1, ranges[1], weighing, number);
  if (!drawn || drawn->first != drawn->last) return {};
  return drawn->first;
}

// Estimates how the weight is spread over scores: from all tokens of high scores, and a sample of the others.
void FloatDraw::sample(const Weighing& weighing, double top_p) {
  bound_ = scores_->reached(kHeavyRuns);
  scores_->gather({std::nextafter(bound_, kInfinity), kInfinity}, nullptr, heavy_);
  const auto& heavy = heavy_[0];
  // An odd step, because vocabularies are rather laid out in powers of two.
  const int chunks = divide_up(scores_->size(), kSampleChunk), step = divide_up(chunks, kSampleChunks) | 1;
  sample_.assign(heavy.size() + static_cast<size_t>(divide_up(chunks, step)) * kSampleChunk, -kInfinity);
  std::transform(heavy.begin(), heavy.end(), sample_.begin(), [](const Candidate& token) { return token.score; });
  float* light = sample_.data() + heavy.size();
  for (int chunk = 0; chunk < chunks; chunk += step, light += kSampleChunk) {
    float buffer[kSampleChunk];
    const int first = chunk * kSampleChunk, last = std::min(scores_->size(), first + kSampleChunk);
    const float* scores = scores_->at(first, last, buffer);
    for (int i = 0; i < last - first; ++i) light[i] = scores[i] <= bound_ ? scores[i] : -kInfinity;
  }
  const int size = static_cast<int>(sample_.size());
  weights_.resize(sample_.size());
  const uint64_t all = kernels_.weigh(sample_.data(), size, weighing, weights_.data(), nullptr);
  const uint64_t of_heavy = std::accumulate(weights_.begin(), weights_.begin() + heavy.size(), uint64_t{0});
  estimated_ = static_cast<double>(of_heavy) + static_cast<double>(all - of_heavy) * step;

  // Tokens below the last bin together weigh less than half of what is not kept.
  const double least = estimated_ * (1 - top_p) / 2 / scores_->size() / static_cast<double>(kOne);
  bin_width_ = std::min(-std::log2(least), -kLowest) / (weighing.scale * kLog2E) / (kBins - 1);
  constexpr int kSpread = 8;  // of the last bin, because adding to a number has to wait until its last sum is written
  bins_.assign(kBins - 1 + kSpread, {0, 0});
  bin_of_.resize(sample_.size());
  const float highest = scores_->highest(), bins = static_cast<float>(1 / bin_width_);
  for (int i = 0; i < size; ++i) {
    const float bin = (highest - sample_[i]) * bins;
    bin_of_[i] = bin < kBins - 1 ? static_cast<int>(bin) : kBins - 1 + i % kSpread;
  }
  variance_ = 0;
  for (int i = 0; i < size; ++i) {
    const bool is_known = i < static_cast<int>(heavy.size());
    const float weight = static_cast<float>(weights_[i]) * static_cast<float>(is_known ? 1 : step);
    bins_[bin_of_[i]].weight += weight;
    bins_[bin_of_[i]].variance += is_known ? 0 : weight * weight;
  }
  for (const Bin& bin : bins_) variance_ += bin.variance;
}

// The weight of tokens that score at least this much, about.
double FloatDraw::estimate(float least) const {
  if (least == -kInfinity) return estimated_;
  double sum = 0;
  for (int i = 0; i < kBins && score_of(i) >= least; ++i) sum += bins_[i].weight;
  return sum;
}

// Where the token is that takes this number, with the likeliest tokens first.
ScoreRange FloatDraw::range_of(double number) const {
  double before = 0, variance = 0;
  int bin = 0;
  for (; bin < kBins - 1 && before + bins_[bin].weight <= number; ++bin) {
    before += bins_[bin].weight;
    variance += bins_[bin].variance;
  }
  variance += bins_[bin].variance;
  // Of what is before it, less its share of all.
  const double share = std::min(number / estimated_, 1.0);
  variance = (1 - share) * (1 - share) * variance + share * share * (variance_ - variance);
  const double margin = kDeviations * std::sqrt(variance) + 1e-6 * estimated_;
  int first = bin, last = bin;
  double end = before + bins_[bin].weight;
  while (first > 0 && before > number - margin) before -= bins_[--first].weight;
  while (last < kBins - 1 && end < number + margin) end += bins_[++last].weight;
  if (last < kBins - 1 && score_of(last + 1) > bound_) return {std::nextafter(bound_, kInfinity), kInfinity};
  return {last == kBins - 1 ? -kInfinity : score_of(last + 1), first == 0 ? kInfinity : score_of(first)};
}

// Adds up the powers of scores that are at least so high, and finds the tokens of both ranges.
void FloatDraw::look(const std::array<ScoreRange, 2>& ranges, const std::array<float, 3>& least, ThreadPool* pool) {
  sums_.resize(divide_up(scores_->size(), kPiece));
  for (auto& found : found_) {
    found.resize(pool == nullptr ? 1 : pool->threads());
    for (Members& members : found) {
      members.tokens.clear();
      members.scores.clear();
    }
  }
  const bool is_for_all = least[1] == kInfinity && least[2] == kInfinity;
  const auto add = is_for_all ? kernels_.add_powers : kernels_.add_three_powers;
  for_pieces(pool, scores_->size(), [&](int first, int last, int thread) {
    auto& sums = sums_[first / kPiece];
    sums = {0, 0, 0};
    if (!scores_->any_reaches(powers_.lowest, first, last)) return;
    float buffer[kPiece];
    int places[kPiece + 16];
    const float* scores = scores_->at(first, last, buffer);
    add(scores, last - first, powers_, least.data(), sums.data());
    for (int i = 0; i < 2; ++i) {
      Members& members = found_[i][thread];
      const size_t size = members.tokens.size();
      if (size > kMostMembers || !scores_->any_reaches(ranges[i].low, first, last)) continue;
      const int count = kernels_.between(scores, last - first, ranges[i].low, ranges[i].high, places);
      members.tokens.resize(size + count);
      members.scores.resize(size + count);
      for (int j = 0; j < count; ++j) {
        members.tokens[size + j] = first + places[j];
        members.scores[size + j] = scores[places[j]];
      }
    }
  });
  sum_ = {0, 0, 0};
  for (const auto& sums : sums_) {
    for (int i = 0; i < 3; ++i) sum_[i] += sums[i];
  }
}

// Which member of a range takes a number, counted from the first member's; none if another token may. Of all
// threads, the first comes to have the members, and `weights_` are theirs.
std::optional<FloatDraw::Place> FloatDraw::place(int which, const ScoreRange& range, const Weighing& weighing,
                                                 const Bounds& number) {
  Members& members = found_[which][0];
  for (size_t i = 0; i < found_[which].size(); ++i) {
    const auto& [tokens, scores] = found_[which][i];
    if (tokens.size() > kMostMembers) return {};
    if (i == 0) continue;
    members.tokens.insert(members.tokens.end(), tokens.begin(), tokens.end());
    members.scores.insert(members.scores.end(), scores.begin(), scores.end());
  }
  if (number.low < 0 && range.high < kInfinity) return {};
  weights_.resize(members.scores.size());
  const auto size = static_cast<int>(members.scores.size());
  kernels_.weigh(members.scores.data(), size, weighing, weights_.data(), nullptr);

  const auto low = static_cast<uint64_t>(std::max(number.low, 0.0)), high = static_cast<uint64_t>(number.high);
  uint64_t end = rank_near(members, range, low, high);
  Place place = {-1, -1, {}};
  for (const Candidate& member : near_) {
    end += member.weight;
    if (place.first < 0 && low < end) {
      place.first = member.token;
      place.end.low = static_cast<double>(end);
    }
    if (high >= end) continue;
    place.last = member.token;
    place.end.high = static_cast<double>(end);
    return place;
  }
  return {};
}

// Sets `near_` to the members that take these two numbers and all between them, and others close by, the likeliest
// first. Returns what the members before them weigh.
uint64_t FloatDraw::rank_near(const Members& members, const ScoreRange& range, uint64_t low, uint64_t high) {
  const auto size = static_cast<int>(members.scores.size());
  const float top = std::min(range.high, scores_->highest()), bottom = std::max(range.low, score_of(kBins - 1));
  const float bins = (kMemberBins - 1) / std::max(top - bottom, 1e-30F);
  bin_of_.resize(members.scores.size());
  for (int i = 0; i < size; ++i) {
    const float bin = (top - members.scores[i]) * bins;
    bin_of_[i] = static_cast<int>(bin < kMemberBins - 1 ? bin : kMemberBins - 1);
  }
  std::array<uint64_t, kMemberBins> sums = {};
  for (int i = 0; i < size; ++i) sums[bin_of_[i]] += weights_[i];
  uint64_t before = 0;
  int first = 0;
  while (first < kMemberBins - 1 && low >= before + sums[first]) before += sums[first++];
  int last = first;
  for (uint64_t end = before + sums[last]; last < kMemberBins - 1 && high >= end;) end += sums[++last];

  int count = 0;  // the places of members in these bins are put where bins have been read: no branch is mispredicted
  for (int i = 0; i < size; ++i) {
    const int bin = bin_of_[i];
    bin_of_[count] = i;
    count += static_cast<int>(bin >= first) & static_cast<int>(bin <= last);
  }
  near_.clear();
  for (int i = 0; i < count; ++i) {
    const int member = bin_of_[i];
    near_.push_back({members.scores[member], members.tokens[member], weights_[member]});
  }
  if (!std::is_sorted(near_.begin(), near_.end(), is_likelier)) std::sort(near_.begin(), near_.end(), is_likelier);
  return before;
}

}  // namespace mobilemoe
