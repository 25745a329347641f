// A file mapped read-only: its pages are read when they are first used, and processes that map it share them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace mobilemoe {

class MappedFile {
 public:
  explicit MappedFile(const std::string& path);  // throws Error(file)
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace mobilemoe
