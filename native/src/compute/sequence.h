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
  void truncate(int length);  // forgets all tokens but the first `length`; throws Error(usage) if there are fewer
  void copy_from(const Sequence& other, int length);  // becomes the first `length` tokens of another of the same kind

 private:
  KvCache kv_;
  std::vector<int> tokens_;
};

}  // namespace mobilemoe
