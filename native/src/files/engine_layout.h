// Where each part of a model lies in an engine file. The writer and the reader both use this layout.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "model/model.h"

namespace mobilemoe {

constexpr char kEngineMagic[9] = "MMENGINE";
constexpr uint32_t kEngineVersion = 3;
constexpr size_t kEngineAlign = 64;
constexpr size_t kEnginePage = 4096;  // routed experts can be read singly and past the system's cache of files

// The first bytes of the file.
struct EngineHeader {
  char magic[8];
  uint32_t version;
  uint32_t shared_pages;  // of kEnginePage bytes: they hold all that every token needs, and the rest is routed experts
  uint64_t json_bytes;
  uint64_t file_bytes;
  Fingerprint fingerprint;
  Fingerprint origin;
  Fingerprint hash;
};
static_assert(sizeof(EngineHeader) == 2 * kEngineAlign);

struct Section {
  size_t offset = 0;
  size_t bytes = 0;
};

constexpr size_t align(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }
constexpr size_t align_section(size_t bytes) { return align(bytes, kEngineAlign); }

// The sections of the model that a config describes, one after the other, each aligned. An FFN is its gate_up, then its
// down. The routed experts are the last sections, and each of them begins at a multiple of kEnginePage.
class EngineLayout {
 public:
  // The config has passed check_int4; `start` is where the first section begins. Throws Error(config) beyond 2^62
  // bytes.
  EngineLayout(const Config& config, size_t start);

  const std::map<std::string, Section>& sections() const { return sections_; }
  size_t offset(const std::string& name) const { return sections_.at(name).offset; }
  size_t shared_end() const { return shared_end_; }  // where the routed experts begin
  size_t end() const { return end_; }

 private:
  void add(const std::string& name, size_t bytes, size_t count = 1, size_t unit = kEngineAlign);
  void add_layer(const Config& config, const std::string& stem);

  std::map<std::string, Section> sections_;
  size_t end_;
  size_t shared_end_;
};

std::string layer_stem(int layer);  // "layers.3."
int qkv_rows(const Config& config);
Ffn shape_of_ffn(int hidden, int width, Axis axis);  // with no data
Ffn place_ffn(const uint8_t* at, Ffn shape);         // the same with its data at `at`
size_t ffn_bytes(int hidden, int width);             // with its alignment
size_t expert_bytes(const Config& config);           // of one routed expert, with its alignment

}  // namespace mobilemoe
