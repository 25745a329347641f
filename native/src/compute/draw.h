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
  uint64_t weigh(int begin, int end, uint64_t* weights) const;  // of one piece

  const Scores* scores_ = nullptr;
  Weighing weighing_;
  uint64_t total_ = 0;
  std::vector<uint64_t> runs_, pieces_;  // the highest weight of each run, the sum of each piece
};

// Tokens take numbers from the likeliest down (is_likelier). Only the fewest that together weigh `top_p` of all are
// certain to be found, and those that weigh less than `least` (> 0) take none.
class DrawByRank {
 public:
  void prepare(const Scores& scores, double scale, double top_p, uint64_t least, ThreadPool* pool);
  uint64_t total() const { return total_; }  // what the tokens that are kept weigh
  int token(uint64_t number) { return find(number).token; }

 private:
  // What a thread adds up. A bucket's weight is in parts, at which tokens take turns: adding to a number has to wait
  // until its last sum is written.
  static constexpr int kParts = 2;
  struct Sums {
    bool has_begun;
    uint64_t all;  // of all its tokens
    uint64_t of_bucket[kParts][kBuckets];
  };
  struct Place {
    int bucket;
    uint64_t before;  // what the buckets before it weigh
  };
  struct Found {
    int token;
    uint64_t end;  // the first number that is not the token's
  };
  Place bucket_at(uint64_t number) const;
  Found find(uint64_t number);
  uint64_t weight_from(uint64_t least, int bucket);

  const Scores* scores_ = nullptr;
  ThreadPool* pool_ = nullptr;
  Weighing weighing_;
  uint64_t total_ = 0;
  std::vector<uint64_t> runs_;
  std::vector<Sums> sums_;         // of each thread
  std::vector<uint64_t> buckets_;  // the weight of each, the likeliest tokens first
  std::vector<std::vector<Candidate>> found_;
  std::vector<Candidate> members_;
};

}  // namespace mobilemoe
