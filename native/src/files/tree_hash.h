// A hash that several threads compute together: the SHA-256 of the SHA-256 digests of all pieces of 1 MiB, in order.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "files/sha256.h"
#include "threads/thread_pool.h"

namespace mobilemoe {

constexpr size_t kHashPiece = 1 << 20;

// `piece(offset, bytes, thread)` gives a pointer to that part of the data; it is called from the pool's threads, and
// what it points to must stay until its next call on the same thread.
template <class Piece>
std::array<uint8_t, 32> tree_hash(ThreadPool& pool, size_t bytes, const Piece& piece) {
  std::vector<std::array<uint8_t, 32>> digests((bytes + kHashPiece - 1) / kHashPiece);
  pool.run(static_cast<int>(digests.size()), [&](int index, int thread) {
    const size_t begin = index * kHashPiece, size = std::min(kHashPiece, bytes - begin);
    Sha256 hash;
    hash.update(piece(begin, size, thread), size);
    digests[index] = hash.finish();
  });
  Sha256 all;
  all.update(digests.data(), digests.size() * sizeof digests[0]);
  return all.finish();
}

}  // namespace mobilemoe
