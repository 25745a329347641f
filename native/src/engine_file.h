// The engine file: a model in kernel-ready form, mapped and used in place (no copy; pages shared between processes).
//
// Bytes: a header of 128 { magic "MMENGINE", u32 version, u32 zero, u64 json_bytes, u64 file_bytes, 32 bytes each of
// the checkpoint's fingerprint, of its origin's and of the hash of this file }, then JSON { "config": ..., "sections":
// {name: [offset, bytes]} }, then the sections, each aligned to 64 bytes. Everything is little-endian. The hash is the
// tree_hash of the file in which its own bytes are zeros.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <string_view>

#include "config.h"

namespace mobilemoe {

using Fingerprint = std::array<uint8_t, 32>;

// A read-only memory map.
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

// Views into an engine file; valid while the Model that holds them lives.
struct LayerWeights {
  const float* input_norm = nullptr;           // [hidden]
  const float* post_attention_norm = nullptr;  // [hidden]
  Matrix qkv;                                  // rows of q, k, v, each part padded to 16
  Matrix o;                                    // [hidden, q_width]
  const float* q_norm = nullptr;               // head_dim or q_width; null unless qk_norm has weights
  const float* k_norm = nullptr;
  const float* router = nullptr;       // [hidden][experts padded to 16]
  const float* expert_bias = nullptr;  // [experts padded to 16]; zeros where the model has none
  std::vector<Ffn> experts;            // empty in a dense model
  Ffn shared;                          // width 0: none. In a dense model: the only FFN
};

struct Model {
  Config config;
  std::string config_json;
  Fingerprint fingerprint{};  // of the checkpoint that it was made from
  Fingerprint origin{};       // of the checkpoint that this one was rounded from; its own where it was not
  Matrix embedding;           // [vocab padded to 16, hidden]
  Matrix head;                // the same as `embedding` if tied
  const float* norm = nullptr;
  std::vector<LayerWeights> layers;
  size_t file_bytes = 0;
  std::shared_ptr<const void> storage;  // the mapping, or memory
};

// Maps an engine file; throws Error(file) if it is damaged, of another version or not what its config says.
Model map_engine_file(const std::string& path);

// Throws Error(file) unless every byte of an engine file is the one that was written. Reads all of it.
void verify_engine_file(const std::string& path);

// What `folder` (config.json beside one safetensors file, or several under an index) holds: a hash of config.json and
// of each tensor's name, type, shape and bytes, wherever the tensors lie and whatever else the files say. Reads them
// all.
Fingerprint checkpoint_fingerprint(const std::string& folder);

// Rewrites the INT4 checkpoint in `folder` as the engine file `path`: every nibble and scale is kept. Written beside
// its target, fsynced and renamed; two processes may do it at once. `origin` may be null. `progress` may be null:
// called with (done, total) bytes, it stops the work by returning false (throws Error(usage)).
void write_engine_file(const std::string& folder, const std::string& path, const Fingerprint* origin,
                       bool (*progress)(size_t, size_t, void*), void* context);

// The same into memory, for machines without a place to write to.
Model repack_in_memory(const std::string& folder);

}  // namespace mobilemoe
