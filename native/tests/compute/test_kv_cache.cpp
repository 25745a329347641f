// The cache of keys and values.
#include <cstring>

#include "check.h"
#include "compute/kv_cache.h"
#include "error.h"
#include "kernels/kv_layout.h"

namespace {

using namespace mobilemoe;

Config small_config() {
  Config config;
  config.num_hidden_layers = 3;
  config.num_key_value_heads = 2;
  config.head_dim = 64;
  return config;
}

}  // namespace

TEST(kv_blocks_have_the_published_sizes) {
  CHECK_EQ(kv_block_bytes(KvType::int8, 64), 64u * (64 + 64 + 12));  // 140 bytes a token and KV head
  CHECK_EQ(kv_block_bytes(KvType::f16, 64), 64u * 2 * 128);
  CHECK_EQ(kv_block_bytes(KvType::f32, 64), 64u * 4 * 128);
  CHECK_EQ(kv_block_bytes(KvType::int8, 10), 64u * (12 + 16 + 12));
  CHECK_EQ(kv_block_bytes(KvType::f16, 10), 64u * 2 * (10 + 16));
}

TEST(kv_cache_starts_as_zeros_and_its_parts_do_not_overlap) {
  KvCache cache(small_config(), KvType::int8, 130);  // 3 blocks a head
  const size_t bytes = 3 * cache.block_bytes();
  CHECK_EQ(cache.capacity(), 130);
  for (int layer = 0; layer < 3; ++layer) {
    for (int head = 0; head < 2; ++head) {
      uint8_t* blocks = cache.block(layer, head, 0);
      for (size_t i = 0; i < bytes; ++i) CHECK_EQ(blocks[i], 0);
      std::memset(blocks, 10 * layer + head + 1, bytes);
    }
  }
  for (int layer = 0; layer < 3; ++layer) {
    for (int head = 0; head < 2; ++head) {
      CHECK_EQ(cache.block(layer, head, 0)[0], 10 * layer + head + 1);
      CHECK_EQ(cache.block(layer, head, 0)[bytes - 1], 10 * layer + head + 1);
    }
  }
}

TEST(kv_cache_copies_the_blocks_of_the_first_tokens) {
  for (KvType type : {KvType::int8, KvType::f16, KvType::f32}) {
    KvCache from(small_config(), type, 256), to(small_config(), type, 640);
    for (int layer = 0; layer < 3; ++layer)
      for (int head = 0; head < 2; ++head) std::memset(from.block(layer, head, 0), 5 + layer, 4 * from.block_bytes());
    to.copy_from(from, 65);  // two blocks
    for (int layer = 0; layer < 3; ++layer) {
      for (int head = 0; head < 2; ++head) {
        const uint8_t* blocks = to.block(layer, head, 0);
        CHECK_EQ(blocks[0], 5 + layer);
        CHECK_EQ(blocks[2 * to.block_bytes() - 1], 5 + layer);
        CHECK_EQ(blocks[2 * to.block_bytes()], 0);
      }
    }
    to.copy_from(from, 0);
  }
}

TEST(kv_cache_refuses_to_copy_what_does_not_fit) {
  KvCache cache(small_config(), KvType::int8, 128), smaller(small_config(), KvType::int8, 64);
  KvCache halves(small_config(), KvType::f16, 128);
  CHECK_THROWS_SAYING(smaller.copy_from(cache, 65), ErrorCode::usage, "65 tokens");
  CHECK_THROWS(cache.copy_from(smaller, 65), ErrorCode::usage);
  CHECK_THROWS(cache.copy_from(smaller, -1), ErrorCode::usage);
  CHECK_THROWS_SAYING(cache.copy_from(halves, 1), ErrorCode::usage, "same kind");
}

TEST(kv_cache_that_cannot_be_had_is_an_error) {
  Config config = small_config();
  CHECK_THROWS(KvCache(config, KvType::int8, 0), ErrorCode::usage);
  config.num_hidden_layers = 1 << 24;
  config.num_key_value_heads = 1 << 24;
  CHECK_THROWS_SAYING(KvCache(config, KvType::f32, 1 << 30), ErrorCode::memory, "1073741824 tokens");  // over 2^64
  config.num_key_value_heads = 1 << 10;
  CHECK_THROWS(KvCache(config, KvType::int8, 1 << 20), ErrorCode::memory);  // more than a machine can address
  config = small_config();
  config.head_dim = 258;
  CHECK_THROWS_SAYING(KvCache(config, KvType::int8, 64), ErrorCode::config, "head_dim is 258");
}
