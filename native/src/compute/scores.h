// The scores of all tokens of the vocabulary: which are the highest, and what share of the probability each has.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/weight.h"
#include "model/matrix.h"
#include "threads/thread_pool.h"

namespace mobilemoe {

constexpr int kBlock = 32 * kScoreRun;  // scores that one task looks at

// Calls work(begin, end, thread) for each block of tokens, on the threads of the pool if there is one.
template <class Work>
void for_blocks(ThreadPool* pool, int size, const Work& work) {
  const auto task = [&](int block, int thread) { work(block * kBlock, std::min(size, (block + 1) * kBlock), thread); };
  const int blocks = divide_up(size, kBlock);
  if (pool != nullptr) return pool->run(blocks, task);
  for (int block = 0; block < blocks; ++block) task(block, 0);
}

struct Candidate {
  float score;
  int token;
  uint64_t weight;
};

// Higher scores before lower ones, then lower tokens before higher ones.
inline bool is_likelier(const Candidate& a, const Candidate& b) {
  return a.score > b.score || (a.score == b.score && a.token < b.token);
}

class Scores {
 public:
  explicit Scores(const Kernels& kernels) : kernels_(kernels) {}

  // Looks at scores [size], which must stay where they are as long as this object is used. NaN counts as -infinity.
  void read(const float* scores, int size, ThreadPool* pool);

  int size() const { return size_; }
  float operator[](int token) const { return scores_[token]; }
  float highest() const { return highest_; }
  float highest_of_run(int run) const { return largest_[run]; }

  int best() const;  // the lowest token with the highest score; throws Error(numerics) if that is -infinity

  // The `count` likeliest tokens, or all if there are fewer, best first; their weights are not set.
  void likeliest(int count, std::vector<Candidate>& best) const;

  // Sets the weights, and the buckets unless that is null, of tokens [begin, end) as Kernels::weigh does, and returns
  // their sum. The highest score must be finite.
  uint64_t weigh(int begin, int end, double scale, uint64_t* weights, int16_t* buckets = nullptr) const {
    return kernels_.weigh(scores_ + begin, end - begin, highest_, scale, weights, buckets);
  }
  uint64_t weigh(std::vector<Candidate>& candidates, double scale) const;

  // The weight of the likeliest token of each run.
  void weigh_runs(double scale, std::vector<uint64_t>& weights) const;

 private:
  const Kernels& kernels_;
  const float* scores_ = nullptr;
  int size_ = 0;
  float highest_ = 0;
  std::vector<float> largest_;  // of each run
};

}  // namespace mobilemoe
