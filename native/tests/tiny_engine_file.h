// The bytes of a tiny engine file, to be damaged, for tests and fuzzers.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "files/engine_file.h"
#include "files/engine_layout.h"
#include "files/repack.h"
#include "tiny_checkpoint.h"

namespace mobilemoe::tiny {

inline std::string engine_file(const Tiny& tiny) {
  Checkpoint checkpoint;
  checkpoint.place = "memory";
  checkpoint.config_json = tiny.config;
  checkpoint.config = parse_config(tiny.config);
  checkpoint.tensors = tiny.tensors;
  const Model model = repack_in_memory(checkpoint);
  return {static_cast<const char*>(model.storage.get()), model.file_bytes};
}

// How many of a file's bytes come before its sections: the fixed header, then JSON.
inline size_t header_bytes(const std::string& engine_file) {
  EngineHeader header;
  std::memcpy(&header, engine_file.data(), sizeof header);
  return sizeof header + header.json_bytes;
}

// Reads from a copy of exactly this size with a mapping's alignment, so that a sanitizer notices any read beyond its
// end.
inline Model read_engine_file(const std::string& bytes) {
  const std::shared_ptr<uint8_t> copy(
      static_cast<uint8_t*>(std::aligned_alloc(kEngineAlign, align_section(bytes.size()))), std::free);
  std::memcpy(copy.get(), bytes.data(), bytes.size());
  return mobilemoe::read_engine_file(copy.get(), bytes.size(), "it", copy);
}

}  // namespace mobilemoe::tiny
