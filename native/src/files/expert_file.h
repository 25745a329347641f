// The routed experts of an engine file, read one by one.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "files/engine_layout.h"
#include "files/mapped_file.h"
#include "model/expert_source.h"

namespace mobilemoe {

class ExpertFile : public ExpertSource {
 public:
  ExpertFile(std::shared_ptr<const MappedFile> file, std::string path, const Config& config,
             const EngineLayout& layout);

  size_t bytes() const override { return bytes_; }
  int read(int layer, int expert, uint8_t* to) const override;
  Ffn place(const uint8_t* at) const override { return place_ffn(at, shape_); }
  [[noreturn]] void fail(int fault) const override;

 private:
  std::shared_ptr<const MappedFile> file_;
  std::string path_;
  std::vector<size_t> offsets_;  // of each layer's experts
  Ffn shape_;
  size_t bytes_;
};

}  // namespace mobilemoe
