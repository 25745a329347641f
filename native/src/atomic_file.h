// A file that is either whole or absent: written beside its target, fsynced and renamed.
#pragma once

#include <cstddef>
#include <string>

namespace mobilemoe {

class AtomicFile {
 public:
  explicit AtomicFile(const std::string& path);  // throws Error(file), as do the others
  ~AtomicFile();                                 // removes what has not been committed
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write_at(size_t offset, const void* data, size_t bytes);  // from any thread; what is left out reads as zeros
  void commit(size_t bytes);                                     // the file, of this size, replaces the target

 private:
  [[noreturn]] void fail() const;  // with errno's words

  std::string path_, part_;
  int descriptor_ = -1;
};

}  // namespace mobilemoe
