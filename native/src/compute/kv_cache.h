// Keys and values of one sequence, in blocks of 64 tokens for each layer and KV head. The whole capacity is reserved at
// once, but the system provides a page only when it is first written.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"
#include "model/config.h"

namespace mobilemoe {

// The most memory that the keys and values of `tokens` tokens of one sequence fill: all pages that hold a part of their
// blocks.
size_t kv_memory_bytes(const Config& config, KvType type, int tokens);

class KvCache {
 public:
  KvCache(const Config& config, KvType type, int capacity);  // throws Error(memory)
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  KvType type() const { return type_; }
  int capacity() const { return capacity_; }  // tokens
  int heads() const { return heads_; }
  int layers() const { return layers_; }
  size_t block_bytes() const { return block_bytes_; }
  // The block of tokens 64 index .. 64 index + 63 of one layer and KV head; the next one follows it.
  uint8_t* block(int layer, int head, int index) const {
    return data_ + ((static_cast<size_t>(layer) * heads_ + head) * blocks_per_head_ + index) * block_bytes_;
  }
  // The size of those blocks of one layer and KV head that hold the first `tokens` tokens.
  size_t used_bytes(int tokens) const { return (divide_up(tokens, kKvBlock))*block_bytes_; }
  // Copies the blocks that hold the first `tokens` tokens of another cache of the same kind.
  void copy_from(const KvCache& other, int tokens);

 private:
  KvType type_;
  int capacity_, layers_, heads_;
  size_t block_bytes_, blocks_per_head_, bytes_;
  uint8_t* data_ = nullptr;
};

}  // namespace mobilemoe
