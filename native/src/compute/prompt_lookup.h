// Prompt lookup (Saxena 2023): where the end of a text occurred before in it, what followed there may follow again.
#pragma once

#include <cstdint>

#include "compute/draft.h"

namespace mobilemoe {

class PromptLookup : public Draft {
 public:
  // What followed the longest earlier occurrence of the text's end, the latest of several as long; nothing if not even
  // the last three tokens occurred before. It takes less than a microsecond for each new token of the text.
  Proposal propose(const std::vector<int>& text) override;

 private:
  void index(const std::vector<int>& text);

  std::vector<int> latest_;   // by a hash of three tokens: where the latest such three end, or -1
  std::vector<int> earlier_;  // by position: where three tokens of the same hash ended before, or -1
};

}  // namespace mobilemoe
