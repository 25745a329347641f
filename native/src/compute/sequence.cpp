#include "compute/sequence.h"

#include <string>

#include "error.h"

namespace mobilemoe {

void Sequence::append(const int* tokens, int count) {
  tokens_.insert(tokens_.end(), tokens, tokens + count);
  states_count_ = 0;
}

void Sequence::truncate(int length) {
  if (length < 0 || length > this->length()) {
    throw Error(ErrorCode::usage,
                "cannot keep " + std::to_string(length) + " of " + std::to_string(this->length()) + " tokens");
  }
  tokens_.resize(length);
}

void Sequence::copy_from(const Sequence& other, int length) {
  if (&other == this) return truncate(length);
  if (length < 0 || length > other.length() || length > capacity() || other.kv_.type() != kv_.type() ||
      other.kv_.layers() != kv_.layers() || other.kv_.block_bytes() != kv_.block_bytes()) {
    throw Error(ErrorCode::usage, "cannot copy " + std::to_string(length) + " tokens of a sequence of " +
                                      std::to_string(other.length()) + " into one with a capacity of " +
                                      std::to_string(capacity()));
  }
  kv_.copy_from(other.kv_, length);
  tokens_.assign(other.tokens_.begin(), other.tokens_.begin() + length);
  states_count_ = 0;
}

}  // namespace mobilemoe
