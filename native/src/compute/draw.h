// Which token a number chooses: each token takes as many of the numbers 0, 1, 2 ... as it weighs (Scores::weigh).
//
// Weights are whole numbers, so that their sums, and with them the token, do not depend on how the work is divided.
#pragma once

#include <cstdint>
#include <vector>

#include "compute/scores.h"

namespace mobilemoe {

// Tokens take numbers in the order of their ids. Those that weigh less than `least` (> 0) take none.
class DrawById {
 public:
  // `scores` must stay as they are as long as `token` is called.
  void prepare(const Scores& scores, double scale, uint64_t least, ThreadPool* pool);
  uint64_t total() const { return total_; }
  int token(uint64_t number) const;  // number < total

 private:
  uint64_t weigh(int begin, int end, uint64_t* weights) const;

  const Scores* scores_ = nullptr;
  double scale_ = 1;
  uint64_t least_ = 1;
  uint64_t total_ = 0;
  std::vector<uint64_t> runs_, blocks_;  // the highest weight of each run, the sum of each block
};

// Tokens take numbers from the likeliest down (is_likelier). Only the fewest that together weigh `top_p` of all are
// certain to be found, and those that weigh less than `least` (> 0) take none.
class DrawByRank {
 public:
  void prepare(const Scores& scores, double scale, double top_p, uint64_t least, ThreadPool* pool);
  uint64_t total() const { return total_; }  // what the tokens that are kept weigh
  int token(uint64_t number) { return find(number).token; }

 private:
  struct Found {
    int token;
    uint64_t end;  // the first number that is not the token's
  };
  Found find(uint64_t number);

  const Scores* scores_ = nullptr;
  double scale_ = 1;
  uint64_t total_ = 0;
  std::vector<uint64_t> runs_;
  std::vector<uint64_t> sums_;    // [threads][kBuckets] the weight of each bucket, the likeliest tokens first
  std::vector<int16_t> buckets_;  // of each token
  std::vector<Candidate> members_;
};

}  // namespace mobilemoe
