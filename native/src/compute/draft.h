// Drafts: guesses of the tokens that come next in a text, made without the model. One pass then tells which of them are
// what the model chooses anyway, so that a guess changes the speed of a text and nothing else.
#pragma once

#include <array>
#include <vector>

namespace mobilemoe {

constexpr int kMostDrafts = 4;   // tokens of one proposal
constexpr int kDraftLevels = 6;  // how sure a source may be of a proposal

struct Proposal {
  std::array<int, kMostDrafts> tokens{};
  int count = 0;
  int level = 0;  // proposals of one level are about equally often right; the higher the level, the more often
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
