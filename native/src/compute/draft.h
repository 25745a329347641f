// Drafts: guesses of the tokens that come next in a text, made without the model. One pass then tells which of them are
// what the model chooses anyway, so that a guess changes the speed of a text and nothing else.
#pragma once

#include <array>
#include <vector>

namespace mobilemoe {

constexpr int kMostDrafts = 4;  // tokens of one proposal

// Kinds of guessed tokens, each about equally often right if those before it are: the first and the later tokens of a
// lookup by the length of its match, and those of the draft head by their probability.
constexpr int kLookupLevels = 6;
constexpr int kLaterKinds = kLookupLevels, kHeadKinds = 2 * kLookupLevels, kHeadLevels = 8;
constexpr int kDraftKinds = kHeadKinds + kHeadLevels;

struct Proposal {
  std::array<int, kMostDrafts> tokens{}, kinds{};
  int count = 0;

  void add(int token, int kind) {
    tokens[count] = token;
    kinds[count++] = kind;
  }
};

class Draft {
 public:
  Draft() = default;
  virtual ~Draft() = default;
  Draft(const Draft&) = delete;
  Draft& operator=(const Draft&) = delete;

  // What may follow `text`, which has grown since the last call and is otherwise the same.
  virtual Proposal propose(const std::vector<int>& text) = 0;
};

}  // namespace mobilemoe
