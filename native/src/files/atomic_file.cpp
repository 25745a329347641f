#include "files/atomic_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <random>

#include "error.h"

namespace mobilemoe {

namespace {

constexpr char kSuffix[] = ".part";

// Whether `descriptor` is locked by us now and still is the file of this name: another process may have removed it as
// abandoned. `unknown` where the file system has no locks.
bool is_claimed(int descriptor, const std::string& path, bool unknown) {
  if (flock(descriptor, LOCK_EX | LOCK_NB) != 0) return errno != EWOULDBLOCK && unknown;
  struct stat held{}, named{};
  return fstat(descriptor, &held) == 0 && lstat(path.c_str(), &named) == 0 && held.st_dev == named.st_dev &&
         held.st_ino == named.st_ino;
}

// Removes parts of this target that no running process is writing.
void clear_abandoned(const std::string& folder, const std::string& prefix) {
  std::error_code ignored;
  for (std::filesystem::directory_iterator entry(folder, ignored), end; !ignored && entry != end;
       entry.increment(ignored)) {
    const std::string name = entry->path().filename().string();
    const bool ends_so = name.size() > sizeof kSuffix && name.compare(name.size() - 5, 5, kSuffix) == 0;
    struct stat status{};
    if (name.compare(0, prefix.size(), prefix) != 0 || !ends_so || lstat(entry->path().c_str(), &status) != 0) continue;
    if (!S_ISREG(status.st_mode) || status.st_uid != geteuid()) continue;
    const int descriptor = open(entry->path().c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (descriptor < 0) continue;
    if (is_claimed(descriptor, entry->path().string(), false)) unlink(entry->path().c_str());
    close(descriptor);
  }
}

std::string random_digits() {
  std::random_device random;
  std::string digits;
  for (int i = 0; i < 12; ++i) digits += "0123456789abcdef"[random() % 16];
  return digits;
}

}  // namespace

AtomicFile::AtomicFile(const std::string& path, mode_t mode) : path_(path) {
  struct stat status{};
  if (stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode)) {
    // A rename by root would take /dev/null from every program.
    throw Error(ErrorCode::file, path + " is no regular file, so it is not replaced");
  }
  const size_t slash = path.rfind('/');
  const size_t name = slash == std::string::npos ? 0 : slash + 1;
  const std::string folder = path.substr(0, name), prefix = "." + path.substr(name) + ".";
  clear_abandoned(folder.empty() ? "." : folder, prefix);
  for (bool is_ours = false; !is_ours;) {
    part_ = folder + prefix + random_digits() + kSuffix;
    descriptor_ = open(part_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    if (descriptor_ < 0 && errno == EEXIST) continue;
    if (descriptor_ < 0) fail();
    is_ours = is_claimed(descriptor_, part_, true);
    if (!is_ours) close(descriptor_);
  }
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
    offset += written;
    bytes -= written;
  }
}

void AtomicFile::commit() {
  if (fsync(descriptor_) != 0 || std::rename(part_.c_str(), path_.c_str()) != 0) fail();
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
