// The engine file: a model in kernel-ready form, mapped and used in place (no copy; pages shared between processes).
//
// Bytes: a header of 128 { magic "MMENGINE", u32 version, u32 zero, u64 json_bytes, u64 file_bytes, 32 bytes each of
// the checkpoint's fingerprint, of its origin's and of the hash of this file }, then JSON { "config": ..., "sections":
// {name: [offset, bytes]} }, then the sections, each aligned to 64 bytes. Everything is little-endian. The hash is the
// tree_hash of the file in which its own bytes are zeros.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "model/model.h"

namespace mobilemoe {

// Maps an engine file; throws Error(file) if it is damaged, of another version or not what its config says.
Model map_engine_file(const std::string& path);

// The model in the bytes of an engine file, which `storage` keeps alive; `name` is for messages. Throws Error(file).
Model read_engine_file(const uint8_t* data, size_t size, const std::string& name, std::shared_ptr<const void> storage);

// Throws Error(file) unless every byte of an engine file is the one that was written. Reads all of it.
void verify_engine_file(const std::string& path);

}  // namespace mobilemoe
