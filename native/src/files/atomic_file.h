// A file that is either whole or absent: written beside its target as `.NAME.*.part`, fsynced and renamed. The part is
// locked while it is written, so that the next writer of this name can tell which parts a killed process left behind,
// and removes them.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <string>

namespace mobilemoe {

class AtomicFile {
 public:
  // `mode` are the permissions, less what the umask takes. Throws Error(file), as do the others.
  explicit AtomicFile(const std::string& path, mode_t mode = 0666);
  ~AtomicFile();  // removes what has not been committed
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write_at(size_t offset, const void* data, size_t bytes);  // from any thread; what is left out reads as zeros
  void commit();                                                 // the file replaces the target
  const std::string& part() const { return part_; }

 private:
  [[noreturn]] void fail() const;  // with the system's words for errno

  std::string path_, part_;
  int descriptor_ = -1;
};

}  // namespace mobilemoe
