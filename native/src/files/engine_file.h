// The engine file: a model in kernel-ready form, mapped and used in place (no copy; pages shared between processes).
//
// Bytes: a header of 128 { magic "MMENGINE", u32 version, u32 shared_pages, u64 json_bytes, u64 file_bytes, 32 bytes
// each of the checkpoint's fingerprint, of its origin's and of the hash of this file }, then JSON { "config": ...,
// "sections": {name: [offset, bytes]} }, then the sections, each aligned to 64 bytes. The routed experts come last:
// they begin behind shared_pages of 4096 bytes, each at the beginning of a page. Everything is little-endian. The hash
// is the tree_hash of the file in which its own bytes are zeros.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "model/model.h"

namespace mobilemoe {

// Maps an engine file; throws Error(file) if it is damaged, of another version or not what its config says. Without
// `experts` only what every token needs is mapped, and read at once; the routed experts come from model.expert_source.
Model map_engine_file(const std::string& path, bool experts = true);

// The model in the bytes of an engine file, which `storage` keeps alive; `name` is for messages. Throws Error(file).
Model read_engine_file(const uint8_t* data, size_t size, const std::string& name, std::shared_ptr<const void> storage);

// Throws Error(file) unless every byte of an engine file is the one that was written. Reads all of it.
void verify_engine_file(const std::string& path);

}  // namespace mobilemoe
