// What a forward pass is made of: consecutive new tokens of several sequences. Their rows are consecutive.
#pragma once

#include <algorithm>

#include "compute/kv_cache.h"

namespace mobilemoe {

struct Span {
  KvCache* kv;
  const int* tokens;
  int count;
  int first_row;              // where the rows of this span begin
  int position;               // of the first token in its sequence
  const int* forced_experts;  // [count][layers][active], or null
  int* chosen_experts;        // the same
};

// The span of a row, out of `count`.
inline const Span& span_of(int row, const Span* spans, int count) {
  const auto begins_after = [](int at, const Span& span) { return at < span.first_row; };
  return *(std::upper_bound(spans, spans + count, row, begins_after) - 1);
}

}  // namespace mobilemoe
