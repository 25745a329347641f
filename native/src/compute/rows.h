// What the operators of a forward pass share: tasks of rows, and working memory that grows with them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "model/matrix.h"
#include "threads/thread_pool.h"

namespace mobilemoe {

constexpr int kTaskRows = 60;  // rows of a matrix task: their inputs stay in L2 beside the weights
constexpr int kFewRows = 8;    // up to here the memory's speed is the limit, as with one row

// Calls work(first, end) for all rows, a few at a time: for everything but matrix products.
template <class Work>
void for_row_ranges(ThreadPool& pool, int rows, const Work& work) {
  const int each = std::clamp(divide_up(rows, pool.threads()), 2, 8);
  pool.run(divide_up(rows, each), [&](int task, int) {
    const int first = task * each;
    work(first, std::min(rows, first + each));
  });
}

// The same row by row: work(row).
template <class Work>
void for_rows(ThreadPool& pool, int rows, const Work& work) {
  for_row_ranges(pool, rows, [&](int first, int end) {
    for (int row = first; row < end; ++row) work(row);
  });
}

// Working memory of equally long rows, one after the other.
template <class T>
class Rows {
 public:
  // What the rows then hold is undefined. Memory only ever grows: a pass takes none once one of its size has run.
  void resize(int rows, size_t width) {
    width_ = width;
    const size_t size = static_cast<size_t>(rows) * width;
    if (elements_.size() < size) elements_.resize(size);
  }
  T* operator[](int row) { return elements_.data() + row * width_; }
  size_t width() const { return width_; }  // elements from one row to the next

 private:
  std::vector<T> elements_;
  size_t width_ = 0;
};

}  // namespace mobilemoe
