#include "compute/prompt_lookup.h"

#include <algorithm>

namespace mobilemoe {
namespace {

constexpr int kShortest = 3;     // tokens of an occurrence: after two, guesses are too often wrong
constexpr int kLongest = 16;     // beyond these, a longer one is no better
constexpr int kCandidates = 16;  // occurrences that are looked at, from the latest

size_t hash_of(const int* end) {
  uint64_t hash = 0;
  for (int i = 0; i < kShortest; ++i) hash = (hash + static_cast<uint32_t>(end[-i])) * 0x9E3779B97F4A7C15U;
  return hash >> 32;
}

// How many tokens before and at these two places are the same, at most kLongest.
int common_suffix(const std::vector<int>& text, int earlier, int later) {
  int length = 0;
  while (length < kLongest && length <= earlier && text[earlier - length] == text[later - length]) ++length;
  return length;
}

int level_of(int length) {
  constexpr int kFrom[kLookupLevels] = {3, 4, 5, 7, 10, 16};
  return static_cast<int>(std::upper_bound(kFrom, kFrom + kLookupLevels, length) - kFrom) - 1;
}

}  // namespace

Proposal PromptLookup::propose(const std::vector<int>& text) {
  index(text);
  const int last = static_cast<int>(text.size()) - 1;
  int place = -1, length = kShortest - 1;
  int candidate = last < 0 ? -1 : earlier_[last];
  for (int i = 0; i < kCandidates && candidate >= 0 && length < kLongest; ++i, candidate = earlier_[candidate]) {
    const int common = common_suffix(text, candidate, last);
    if (common > length) place = candidate, length = common;
  }
  Proposal proposal;
  if (place < 0) return proposal;
  const int level = level_of(length);
  for (int next = place + 1; proposal.count < kMostDrafts; ++next) {  // beyond the end, the text goes on as proposed
    proposal.add(next <= last ? text[next] : proposal.tokens[next - last - 1],
                 proposal.count == 0 ? level : kLaterKinds + level);
  }
  return proposal;
}

void PromptLookup::index(const std::vector<int>& text) {
  if (text.size() > latest_.size()) {  // room for as much again
    size_t size = 256;
    while (size < 2 * text.size()) size *= 2;
    latest_.assign(size, -1);
    earlier_.clear();
  }
  for (size_t end = earlier_.size(); end < text.size(); ++end) {
    earlier_.push_back(-1);
    if (end + 1 < kShortest) continue;
    int& latest = latest_[hash_of(&text[end]) & (latest_.size() - 1)];
    earlier_[end] = latest;
    latest = static_cast<int>(end);
  }
}

}  // namespace mobilemoe
