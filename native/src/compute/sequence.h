// One text in progress: its tokens and their keys and values.
#pragma once

#include <vector>

#include "compute/kv_cache.h"
#include "model/model.h"

namespace mobilemoe {

class Sequence {
 public:
  Sequence(const Model& model, KvType kv, int capacity) : kv_(model.config, kv, capacity) {
    tokens_.reserve(capacity);  // so that decoding takes no memory
  }
  int length() const { return static_cast<int>(tokens_.size()); }
  int capacity() const { return kv_.capacity(); }
  const std::vector<int>& tokens() const { return tokens_; }
  const KvCache& kv() const { return kv_; }
  KvCache& kv() { return kv_; }  // keys and values are written first, then their tokens are appended

  void append(const int* tokens, int count);  // at most capacity() - length()
  // What a draft head begins with at each of the last `count` tokens.
  void keep_states(std::vector<float> states, int count) {
    states_ = std::move(states);
    states_from_ = length() - count;
    states_count_ = count;
  }
  // That of the last token; null where it is not known.
  const float* state() const {
    const int at = length() - 1 - states_from_;
    return at < 0 || at >= states_count_ ? nullptr : &states_[at * (states_.size() / states_count_)];
  }

  void truncate(int length);  // forgets all tokens but the first `length`; throws Error(usage) if there are fewer
  void copy_from(const Sequence& other, int length);  // becomes the first `length` tokens of another of the same kind

 private:
  KvCache kv_;
  std::vector<int> tokens_;
  std::vector<float> states_;  // of `states_count_` tokens from `states_from_` on
  int states_from_ = 0, states_count_ = 0;
};

}  // namespace mobilemoe
