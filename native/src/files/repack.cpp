#include "files/repack.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <exception>
#include <mutex>

#include "error.h"
#include "files/atomic_file.h"
#include "files/engine_file.h"
#include "files/engine_layout.h"
#include "files/hash_file.h"
#include "files/pieces.h"
#include "threads/thread_pool.h"

namespace mobilemoe {
namespace {

struct Progress {
  bool (*call)(size_t, size_t, void*) = nullptr;
  void* context = nullptr;
};

// A scale, norm or router that is NaN or infinite would otherwise be noticed only in the generated text.
void check_finite(const Checkpoint& checkpoint) {
  for (const auto& [name, tensor] : checkpoint.tensors) {
    const bool is_f32 = tensor.dtype == "F32";
    if (!is_f32 && tensor.dtype != "F16" && tensor.dtype != "BF16") continue;
    const size_t width = is_f32 ? 4 : 2;
    const uint16_t exponent = tensor.dtype == "F16" ? 0x7c00 : 0x7f80;
    for (size_t at = width - 2; at < tensor.bytes; at += width) {  // the upper half of an fp32
      uint16_t bits;
      std::memcpy(&bits, tensor.data + at, sizeof bits);
      if ((bits & exponent) == exponent) {
        throw Error(ErrorCode::file, checkpoint.place + ": tensor " + name + " holds NaN or infinity");
      }
    }
  }
}

// Calls make(piece, thread) for every piece, on a few threads; `progress` is called on this one.
template <class Make>
void make_all(const Checkpoint& checkpoint, const Pieces& pieces, int threads, const Progress& progress,
              const Make& make) {
  std::atomic<size_t> done{0};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  std::exception_ptr fault;
  const auto work = [&](int index, int thread) {
    if (stop) return;
    try {
      const Piece& piece = pieces.all[index];
      make(piece, thread);
      const size_t before = done.fetch_add(piece.bytes);
      if (before / kReleaseBytes != (before + piece.bytes) / kReleaseBytes) release(checkpoint);
      if (thread == 0 && progress.call != nullptr && !progress.call(done, pieces.file_bytes, progress.context)) {
        throw Error(ErrorCode::usage, "the repack of " + checkpoint.place + " was stopped");
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!fault) fault = std::current_exception();
      stop = true;
    }
  };
  ThreadPool pool(threads);
  pool.run(static_cast<int>(pieces.all.size()), work);
  if (fault) std::rethrow_exception(fault);
}

// Memory filled with zeros; the system provides a page only when it is first touched.
std::shared_ptr<uint8_t> allocate(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    throw Error(ErrorCode::memory, "there is no memory for the " + std::to_string(bytes) + " bytes of the model");
  }
#ifdef MADV_HUGEPAGE
  madvise(memory, bytes, MADV_HUGEPAGE);  // where it is refused, all is as it would be without
#endif
  return {static_cast<uint8_t*>(memory), [bytes](uint8_t* at) { munmap(at, bytes); }};
}

// Writes zeros before the pieces, in whole blocks of this size. Where the system keeps a file's pages in folios of the
// size in which they were first written (Linux 6.16 on ext4), a block can then be mapped as one huge page: decoding,
// which reads the weights at the speed of the memory, is up to a fifth faster than with pages of 4 KB.
class Blocks {
 public:
  Blocks(AtomicFile& file, size_t file_bytes) : file_(file), file_bytes_(file_bytes), zeros_(kBlock) {}

  // Up to `end` at least; from any thread.
  void write_to(size_t end) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (; written_ < end; written_ += kBlock) {
      file_.write_at(written_, zeros_.data(), std::min(kBlock, file_bytes_ - written_));
    }
  }

 private:
  static constexpr size_t kBlock = 2 << 20;

  AtomicFile& file_;
  const size_t file_bytes_;
  const std::vector<uint8_t> zeros_;
  std::mutex mutex_;
  size_t written_ = 0;
};

}  // namespace

void write_engine_file(const std::string& folder, const std::string& path, const Fingerprint* origin,
                       bool (*progress)(size_t, size_t, void*), void* context) {
  const std::string stamp = checkpoint_stamp(folder);
  Checkpoint checkpoint = open_checkpoint(folder);
  if (origin != nullptr) checkpoint.origin = *origin;
  check_finite(checkpoint);
  const Pieces pieces = cut_engine_file(checkpoint);
  AtomicFile file(path);
  const int threads = file_threads();
  Blocks blocks(file, pieces.file_bytes);
  std::vector<std::vector<uint8_t>> buffers(threads);
  make_all(checkpoint, pieces, threads, {progress, context}, [&](const Piece& piece, int thread) {
    std::vector<uint8_t>& buffer = buffers[thread];
    buffer.resize(std::max(buffer.size(), piece.bytes));
    piece.fill(buffer.data());
    blocks.write_to(piece.offset + piece.bytes);
    file.write_at(piece.offset, buffer.data(), piece.bytes);
  });
  blocks.write_to(pieces.file_bytes);
  const Fingerprint hash = hash_engine_file(file.part());
  file.write_at(offsetof(EngineHeader, hash), hash.data(), hash.size());
  if (checkpoint_stamp(folder) != stamp) {
    throw Error(ErrorCode::file, folder + " changed while it was repacked: try again");
  }
  file.commit();
  if (progress != nullptr) progress(pieces.file_bytes, pieces.file_bytes, context);
}

Model repack_in_memory(const Checkpoint& checkpoint) {
  check_finite(checkpoint);
  const Pieces pieces = cut_engine_file(checkpoint);
  const std::shared_ptr<uint8_t> memory = allocate(pieces.file_bytes);
  make_all(checkpoint, pieces, file_threads(), {},
           [&](const Piece& piece, int) { piece.fill(memory.get() + piece.offset); });
  return read_engine_file(memory.get(), pieces.file_bytes, checkpoint.place, memory);
}

Model repack_in_memory(const std::string& folder) { return repack_in_memory(open_checkpoint(folder)); }

}  // namespace mobilemoe
