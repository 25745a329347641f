// The scores of all tokens of the vocabulary: which are the highest, and what share of the probability each has.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "compute/score_changes.h"
#include "kernels/kernels.h"
#include "kernels/weight.h"
#include "model/matrix.h"
#include "threads/thread_pool.h"

namespace mobilemoe {

constexpr int kBlock = 32 * kScoreRun;  // scores that one task looks at
constexpr int kPiece = 8 * kScoreRun;   // and at once: they and their weights stay in L1

// Calls work(begin, end, thread) for each block of tokens, on the threads of the pool if there is one.
template <class Work>
void for_blocks(ThreadPool* pool, int size, const Work& work) {
  const auto task = [&](int block, int thread) { work(block * kBlock, std::min(size, (block + 1) * kBlock), thread); };
  const int blocks = divide_up(size, kBlock);
  if (pool != nullptr) return pool->run(blocks, task);
  for (int block = 0; block < blocks; ++block) task(block, 0);
}

// The same for each piece.
template <class Work>
void for_pieces(ThreadPool* pool, int size, const Work& work) {
  for_blocks(pool, size, [&](int begin, int end, int thread) {
    for (int first = begin; first < end; first += kPiece) work(first, std::min(first + kPiece, end), thread);
  });
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

struct ScoreRange {
  float low, high;  // both are in it
};

class Scores {
 public:
  explicit Scores(const Kernels& kernels) : kernels_(kernels) {}

  // Looks at scores [size], which must stay where they are as long as this object is used, as `changes`, prepared for
  // them, change them; null: as they are. NaN counts as -infinity.
  void read(const float* scores, int size, const ScoreChanges* changes, ThreadPool* pool);

  int size() const { return size_; }
  float highest() const { return highest_; }

  // Those of tokens [begin, end), where `begin` is a multiple of kScoreRun; changed ones are written into the buffer.
  const float* at(int begin, int end, float* buffer) const {
    if (changes_ == nullptr) return scores_ + begin;
    changes_->copy(begin, end, buffer);
    return buffer;
  }

  int best() const;  // the lowest token with the highest score; throws Error(numerics) if that is -infinity

  bool any_reaches(float score, int begin, int end) const {  // of the tokens of these runs
    const auto run = largest_.begin() + begin / kScoreRun;
    return std::any_of(run, run + divide_up(end - begin, kScoreRun), [=](float highest) { return highest >= score; });
  }

  // A score that the likeliest token of `count` runs reaches, and of no more runs but where equal scores are among
  // them; -infinity if there are fewer runs.
  float reached(int count) const;

  // Sets `found` to the tokens of a range, without weights, as each thread found them.
  void gather(ScoreRange range, ThreadPool* pool, std::vector<std::vector<Candidate>>& found) const;

  // The `count` likeliest tokens, or all if there are fewer, best first; their weights are not set.
  void likeliest(int count, std::vector<Candidate>& best) const;

  // Of e^(score - highest), within 2^-21 of it; the highest score must be finite.
  double sum_exp(ThreadPool* pool);

  // How powers of e^((score - highest) * scale) are added up. False where the exponents are beyond what `Powers` can
  // hold. A power of 1 is e^... times `unit`.
  bool powers(double scale, Powers& powers, double& unit) const;

  // How they are weighed: those that weigh less than `least` (> 0) weigh nothing. The highest score must be finite.
  Weighing weighing(double scale, uint64_t least = 1) const;

  // Sets the weights, and the buckets unless that is null, of tokens [begin, end), at most kPiece, as Kernels::weigh
  // does, and returns their sum.
  uint64_t weigh(int begin, int end, const Weighing& weighing, uint64_t* weights, int16_t* buckets = nullptr) const {
    float buffer[kPiece];
    return kernels_.weigh(at(begin, end, buffer), end - begin, weighing, weights, buckets);
  }
  uint64_t weigh(std::vector<Candidate>& candidates, double scale) const;

  // The weight of the likeliest token of each run.
  void weigh_runs(const Weighing& weighing, std::vector<uint64_t>& weights) const;

  int bucket_of(float score, const Weighing& weighing) const;
  // Sets `members` to the tokens of a bucket, with their weights, in any order. `found` is working memory.
  void find(int bucket, const Weighing& weighing, ThreadPool* pool, std::vector<std::vector<Candidate>>& found,
            std::vector<Candidate>& members) const;

 private:
  template <class Work>
  void weigh_each(std::vector<Candidate>& candidates, const Weighing& weighing, const Work& work) const;

  const Kernels& kernels_;
  const float* scores_ = nullptr;
  const ScoreChanges* changes_ = nullptr;
  int size_ = 0;
  float highest_ = 0;
  std::vector<float> largest_, block_largest_;  // of each run and of each block
  std::vector<double> block_sums_;              // of powers
};

}  // namespace mobilemoe
