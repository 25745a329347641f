#include "compute/kv_cache.h"

#include <sys/mman.h>

#include <cstring>
#include <string>

#include "error.h"
#include "kernels/kv_layout.h"

namespace mobilemoe {

size_t kv_memory_bytes(const Config& config, KvType type, int tokens) {
  constexpr size_t kPage = 4096;
  if (tokens <= 0) return 0;
  const size_t used = divide_up(tokens, kKvBlock) * kv_block_bytes(type, config.head_dim);
  return static_cast<size_t>(config.num_hidden_layers) * config.num_key_value_heads * (used + kPage);
}

KvCache::KvCache(const Config& config, KvType type, int capacity)
    : type_(type), capacity_(capacity), layers_(config.num_hidden_layers), heads_(config.num_key_value_heads) {
  if (capacity < 1) throw Error(ErrorCode::usage, "the context is " + std::to_string(capacity) + ", not at least 1");
  if (config.head_dim < 1 || config.head_dim > kMaxHeadDim) {
    throw Error(ErrorCode::config, "head_dim is " + std::to_string(config.head_dim) + ", but attention takes 1 to " +
                                       std::to_string(kMaxHeadDim));
  }
  block_bytes_ = kv_block_bytes(type, config.head_dim);
  blocks_per_head_ = (capacity - 1) / kKvBlock + 1;
  bool too_large = __builtin_mul_overflow(blocks_per_head_, block_bytes_, &bytes_);
  too_large |= __builtin_mul_overflow(bytes_, layers_, &bytes_);
  too_large |= __builtin_mul_overflow(bytes_, heads_, &bytes_);
  void* memory = MAP_FAILED;
  if (!too_large) {
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, kFlags, -1, 0);
  }
  if (memory == MAP_FAILED) {
    throw Error(ErrorCode::memory, "no memory for the keys and values of " + std::to_string(capacity) + " tokens in " +
                                       std::to_string(layers_) + " layers");
  }
  data_ = static_cast<uint8_t*>(memory);
}

KvCache::~KvCache() { munmap(data_, bytes_); }

void KvCache::copy_from(const KvCache& other, int tokens) {
  const bool same_kind =
      other.type_ == type_ && other.layers_ == layers_ && other.heads_ == heads_ && other.block_bytes_ == block_bytes_;
  if (!same_kind) throw Error(ErrorCode::usage, "keys and values can be copied only from a cache of the same kind");
  if (tokens < 0 || tokens > capacity_ || tokens > other.capacity_) {
    throw Error(ErrorCode::usage, "cannot copy " + std::to_string(tokens) + " tokens from a context of " +
                                      std::to_string(other.capacity_) + " to one of " + std::to_string(capacity_));
  }
  const size_t bytes = used_bytes(tokens);
  for (int layer = 0; layer < layers_; ++layer)
    for (int head = 0; head < heads_; ++head) std::memcpy(block(layer, head, 0), other.block(layer, head, 0), bytes);
}

}  // namespace mobilemoe
