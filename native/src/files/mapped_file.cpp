#include "files/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "error.h"

namespace mobilemoe {
namespace {

[[noreturn]] void fail(const std::string& what) { throw Error(ErrorCode::file, what); }

}  // namespace

MappedFile::MappedFile(const std::string& path) {
  const auto refuse = [&path](const char* what) { fail(path + " cannot be read: " + what); };
  // O_NONBLOCK, because opening a pipe would otherwise wait for its writer.
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0 && errno == ENOENT) fail(path + " does not exist");
  if (descriptor < 0) refuse(std::strerror(errno));
  struct stat status{};
  void* mapped = MAP_FAILED;
  if (fstat(descriptor, &status) != 0) {
    const int fault = errno;
    close(descriptor);
    refuse(std::strerror(fault));
  }
  const bool is_readable = S_ISREG(status.st_mode) && status.st_size > 0;
  if (is_readable) mapped = mmap(nullptr, status.st_size, PROT_READ, MAP_SHARED, descriptor, 0);
  const int fault = errno;
  close(descriptor);  // the mapping stays valid
  if (!is_readable) fail(path + (S_ISREG(status.st_mode) ? " is empty" : " is not a file"));
  if (mapped == MAP_FAILED) refuse(std::strerror(fault));
  data_ = static_cast<const uint8_t*>(mapped);
  size_ = status.st_size;
}

MappedFile::~MappedFile() { munmap(const_cast<uint8_t*>(data_), size_); }

}  // namespace mobilemoe
