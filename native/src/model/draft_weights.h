// A draft head as the engine computes with it (docs/guide.md, "Draft heads").
#pragma once

#include <memory>
#include <vector>

#include "model/matrix.h"

namespace mobilemoe {

struct DraftWeights {
  std::vector<int> layers;              // of the model, whose outputs it begins with beside that of the last norm
  Matrix first_proj;                    // [hidden, (2 + layers) hidden], the inputs of the embedding last
  Matrix in_proj;                       // [hidden, 2 hidden], the inputs of the state first
  Ffn ffn;                              // between hidden and hidden
  Matrix head;                          // [shortlist, hidden]
  std::vector<int> shortlist;           // token ids, ascending
  std::shared_ptr<const void> storage;  // keeps the weights
};

}  // namespace mobilemoe
