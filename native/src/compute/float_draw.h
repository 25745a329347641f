// The token that DrawById or DrawByRank chooses, found with floats. They tell it unless what is drawn lies so near the
// edge between two tokens that rounding decides: weights are then added up exactly (draw.h).
//
// By rank, a sample tells between which scores the tokens that matter are, so that one look at all scores adds up what
// weighs more and finds these few. A sample that misleads costs time, never the token.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "compute/scores.h"

namespace mobilemoe {

class FloatDraw {
 public:
  explicit FloatDraw(const Kernels& kernels) : kernels_(kernels) {}

  // What DrawById or DrawByRank, prepared alike, chooses for `uniform` (in [0, 1)) of its total; none: ask them.
  std::optional<int> by_id(const Scores& scores, double scale, uint64_t least, double uniform, ThreadPool* pool);
  std::optional<int> by_rank(const Scores& scores, double scale, double top_p, uint64_t least, double uniform,
                             ThreadPool* pool);

 private:
  // What is known of a sum or a place among the numbers that tokens take: it is between these.
  struct Bounds {
    double low, high;
  };
  struct Bin {
    float weight, variance;
  };
  struct Members {  // of a range, by the threads that found them
    std::vector<int> tokens;
    std::vector<float> scores;
  };
  struct Place {
    int first, last;  // tokens that the number may belong to
    Bounds end;       // the first number that is not theirs
  };

  bool begin(const Scores& scores, double scale);
  Bounds bounds(double sum) const;
  void sample(const Weighing& weighing, double top_p);
  float score_of(int bin) const { return static_cast<float>(scores_->highest() - bin * bin_width_); }
  double estimate(float least) const;
  ScoreRange range_of(double number) const;
  void look(const std::array<ScoreRange, 2>& ranges, const std::array<float, 3>& least, ThreadPool* pool);
  std::optional<Place> place(int which, const ScoreRange& range, const Weighing& weighing, const Bounds& number);
  uint64_t rank_near(const Members& members, const ScoreRange& range, uint64_t low, uint64_t high);

  const Kernels& kernels_;
  const Scores* scores_ = nullptr;
  Powers powers_;
  double unit_ = 1;  // what a power of 1 weighs

  std::vector<std::array<double, 3>> sums_;    // of each piece
  std::array<double, 3> sum_ = {};             // of all of them
  float bound_ = 0;                            // all tokens above it are in the sample
  std::vector<std::vector<Candidate>> heavy_;  // these
  std::vector<float> sample_;
  std::vector<uint64_t> weights_;
  std::vector<int> bin_of_;
  std::vector<Bin> bins_;                // from the highest score down; the lowest scores are all in the last
  double bin_width_ = 0;                 // in scores
  double estimated_ = 0, variance_ = 0;  // of the weight of all tokens
  std::array<std::vector<Members>, 2> found_;
  std::vector<Candidate> near_;
};

}  // namespace mobilemoe
