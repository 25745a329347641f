// A file mapped read-only, all of it or its beginning: its pages are read when they are first used, and processes that
// map it share them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace mobilemoe {

class MappedFile {
 public:
  // Maps the first `most` bytes, or all if there are fewer. Throws Error(file).
  explicit MappedFile(const std::string& path, size_t most = SIZE_MAX);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }            // of what is mapped
  size_t file_size() const { return file_size_; }  // of all
  int descriptor() const { return descriptor_; }   // open for reading while this lives
  void read_all() const;                           // all pages that are mapped, now

 private:
  const uint8_t* data_ = nullptr;
  size_t size_ = 0, file_size_ = 0;
  int descriptor_ = -1;
};

}  // namespace mobilemoe
