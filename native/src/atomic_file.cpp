#include "atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "error.h"

namespace mobilemoe {

AtomicFile::AtomicFile(const std::string& path) : path_(path) {
  const size_t slash = path.rfind('/');
  const size_t name = slash == std::string::npos ? 0 : slash + 1;
  part_ = path.substr(0, name) + "." + path.substr(name) + ".XXXXXX";
  descriptor_ = mkstemp(part_.data());
  if (descriptor_ < 0) fail();
}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  close(descriptor_);
  unlink(part_.c_str());
}

void AtomicFile::write_at(size_t offset, const void* data, size_t bytes) {
  const auto* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = pwrite(descriptor_, next, bytes, static_cast<off_t>(offset));
    if (written < 0 && errno != EINTR) fail();
    if (written <= 0) continue;
    next += written;
    offset += static_cast<size_t>(written);
    bytes -= static_cast<size_t>(written);
  }
}

void AtomicFile::commit(size_t bytes) {
  // mkstemp makes files that only their owner can read.
  if (ftruncate(descriptor_, static_cast<off_t>(bytes)) != 0 || fchmod(descriptor_, 0644) != 0 ||
      fsync(descriptor_) != 0 || std::rename(part_.c_str(), path_.c_str()) != 0) {
    fail();
  }
  close(descriptor_);
  descriptor_ = -1;
  // The folder holds the new name, so it has to reach the disk as well. Some file systems cannot do that: no fault.
  const size_t slash = path_.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path_.substr(0, slash + 1);
  const int descriptor = open(folder.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return;
  static_cast<void>(fsync(descriptor));
  close(descriptor);
}

void AtomicFile::fail() const { throw Error(ErrorCode::file, path_ + " cannot be written: " + std::strerror(errno)); }

}  // namespace mobilemoe
