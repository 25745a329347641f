#include "files/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "error.h"

namespace mobilemoe {
namespace {

[[noreturn]] void fail(const std::string& what) { throw Error(ErrorCode::file, what); }

}  // namespace

MappedFile::MappedFile(const std::string& path, size_t most) {
  const auto refuse = [&path](const char* what) { fail(path + " cannot be read: " + what); };
  // O_NONBLOCK, because opening a pipe would otherwise wait for its writer.
  descriptor_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0 && errno == ENOENT) fail(path + " does not exist");
  if (descriptor_ < 0) refuse(std::strerror(errno));
  struct stat status{};
  void* mapped = MAP_FAILED;
  const bool is_known = fstat(descriptor_, &status) == 0;
  const bool is_readable = is_known && S_ISREG(status.st_mode) && status.st_size > 0;
  if (is_readable) {
    file_size_ = status.st_size;
    size_ = std::min(file_size_, most);
    mapped = mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor_, 0);
  }
  if (mapped == MAP_FAILED) {
    const int fault = errno;
    close(descriptor_);
    if (is_known && !is_readable) fail(path + (S_ISREG(status.st_mode) ? " is empty" : " is not a file"));
    refuse(std::strerror(fault));
  }
  data_ = static_cast<const uint8_t*>(mapped);
}

MappedFile::~MappedFile() {
  munmap(const_cast<uint8_t*>(data_), size_);
  close(descriptor_);
}

void MappedFile::read_all() const {
  constexpr size_t kPage = 4096;
  posix_madvise(const_cast<uint8_t*>(data_), size_, POSIX_MADV_WILLNEED);
  for (size_t at = 0; at < size_; at += kPage) static_cast<void>(*static_cast<const volatile uint8_t*>(data_ + at));
}

}  // namespace mobilemoe
