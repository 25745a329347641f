// What the operators of a forward pass share: tasks of rows, and working memory that grows with them.
#pragma once

#include <algorithm>
#include <cstddef>

#include "model/matrix.h"
#include "threads/thread_pool.h"

namespace mobilemoe {

constexpr int kTaskRows = 60;  // rows of a matrix task: their inputs stay in L2 beside the weights

// work(first, end) for all rows, a few at a time; for whatever is no matrix product.
template <class Work>
void for_row_ranges(ThreadPool& pool, int rows, const Work& work) {
  constexpr int kRows = 8;
  pool.run(divide_up(rows, kRows), [&](int task, int) {
    const int first = task * kRows, end = std::min(rows, first + kRows);
    work(static_cast<size_t>(first), static_cast<size_t>(end));
  });
}

// The same row by row: work(row).
template <class Work>
void for_rows(ThreadPool& pool, int rows, const Work& work) {
  for_row_ranges(pool, rows, [&](size_t first, size_t end) {
    for (size_t row = first; row < end; ++row) work(row);
  });
}

// Never smaller again: a pass takes no memory once one of its size has run.
template <class Buffer>
void grow(Buffer& buffer, size_t size) {
  if (buffer.size() < size) buffer.resize(size);
}

}  // namespace mobilemoe
