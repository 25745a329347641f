#include "files/hash_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "error.h"
#include "files/engine_layout.h"
#include "files/tree_hash.h"
#include "threads/cores.h"

namespace mobilemoe {
namespace {

constexpr int kMaxThreads = 4;

// A file that is read, not mapped, because the pages of a mapping would count as memory of this process.
class ReadFile {
 public:
  explicit ReadFile(const std::string& path) : path_(path), descriptor_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (descriptor_ < 0) fail(errno);
  }
  ~ReadFile() { close(descriptor_); }
  ReadFile(const ReadFile&) = delete;
  ReadFile& operator=(const ReadFile&) = delete;

  size_t size() const {
    struct stat status{};
    if (fstat(descriptor_, &status) != 0) fail(errno);
    return status.st_size;
  }
  // Returns errno, or 0. Bytes beyond the end of the file are filled with zeros.
  int read(size_t offset, uint8_t* to, size_t bytes) const {
    while (bytes > 0) {
      const ssize_t got = pread(descriptor_, to, bytes, static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return errno;
      if (got == 0) {
        std::memset(to, 0, bytes);
        return 0;
      }
      to += got;
      offset += got;
      bytes -= got;
    }
    return 0;
  }
  [[noreturn]] void fail(int fault) const {
    throw Error(ErrorCode::file, path_ + " cannot be read: " + std::strerror(fault));
  }

 private:
  const std::string& path_;
  int descriptor_;
};

}  // namespace

int file_threads() { return std::min(allowed_cores(), kMaxThreads); }

Fingerprint hash_engine_file(const std::string& path) {
  const ReadFile file(path);
  ThreadPool pool(file_threads());
  std::vector<std::vector<uint8_t>> buffers(pool.threads(), std::vector<uint8_t>(kHashPiece));
  std::atomic<int> fault{0};
  const Fingerprint hash = tree_hash(pool, file.size(), [&](size_t offset, size_t bytes, int thread) {
    uint8_t* buffer = buffers[thread].data();
    if (const int found = file.read(offset, buffer, bytes)) fault = found;
    constexpr size_t kEnd = offsetof(EngineHeader, hash) + sizeof(Fingerprint);
    if (offset == 0 && bytes >= kEnd) std::memset(buffer + offsetof(EngineHeader, hash), 0, sizeof(Fingerprint));
    return static_cast<const uint8_t*>(buffer);
  });
  if (fault != 0) file.fail(fault);
  return hash;
}

}  // namespace mobilemoe
