#include "repack.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <mutex>

#include "atomic_file.h"
#include "cores.h"
#include "engine_layout.h"
#include "error.h"
#include "thread_pool.h"

namespace mobilemoe {
namespace {

constexpr int kMaxThreads = 4;
constexpr size_t kReleaseBytes = 32 << 20;  // made between two calls of `release`

struct Progress {
  bool (*call)(size_t, size_t, void*) = nullptr;
  void* context = nullptr;
};

// Scales, norms and routers that are NaN or infinite would only show in the text.
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

// The pages that have been read need not count against this process any longer; those still wanted come back.
void release(const Checkpoint& checkpoint) {
  for (const auto& file : checkpoint.files) {
    madvise(const_cast<uint8_t*>(file->data()), file->size(), MADV_DONTNEED);
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
      const Piece& piece = pieces.all[static_cast<size_t>(index)];
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

int thread_count() { return std::min(allowed_cores(), kMaxThreads); }

// Zeros, page by page as they are touched.
std::shared_ptr<uint8_t> allocate(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    throw Error(ErrorCode::memory, "there is no memory for the " + std::to_string(bytes) + " bytes of the model");
  }
  return {static_cast<uint8_t*>(memory), [bytes](uint8_t* at) { munmap(at, bytes); }};
}

}  // namespace

void write_engine_file(const std::string& folder, const std::string& path, bool (*progress)(size_t, size_t, void*),
                       void* context) {
  const Checkpoint checkpoint = open_checkpoint(folder);
  check_finite(checkpoint);
  const Pieces pieces = cut_engine_file(checkpoint);
  AtomicFile file(path);
  const int threads = thread_count();
  std::vector<std::vector<uint8_t>> buffers(static_cast<size_t>(threads));
  make_all(checkpoint, pieces, threads, {progress, context}, [&](const Piece& piece, int thread) {
    std::vector<uint8_t>& buffer = buffers[static_cast<size_t>(thread)];
    buffer.resize(std::max(buffer.size(), piece.bytes));
    piece.fill(buffer.data());
    file.write_at(piece.offset, buffer.data(), piece.bytes);
  });
  if (checkpoint_fingerprint(folder) != checkpoint.fingerprint) {
    throw Error(ErrorCode::file, folder + " changed while it was repacked: try again");
  }
  file.commit(pieces.file_bytes);
  if (progress != nullptr) progress(pieces.file_bytes, pieces.file_bytes, context);
}

Model repack_in_memory(const Checkpoint& checkpoint) {
  check_finite(checkpoint);
  const Pieces pieces = cut_engine_file(checkpoint);
  const std::shared_ptr<uint8_t> memory = allocate(pieces.file_bytes);
  make_all(checkpoint, pieces, thread_count(), {},
           [&](const Piece& piece, int) { piece.fill(memory.get() + piece.offset); });
  return read_engine_file(memory.get(), pieces.file_bytes, checkpoint.place, memory);
}

Model repack_in_memory(const std::string& folder) { return repack_in_memory(open_checkpoint(folder)); }

}  // namespace mobilemoe
