// A checkpoint folder as it was written by training or by others: config.json beside its safetensors files.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "files/mapped_file.h"
#include "files/safetensors.h"
#include "model/model.h"

namespace mobilemoe {

struct Checkpoint {
  std::string place;        // the folder, for messages
  std::string config_json;  // as stored in the file
  Config config;
  Fingerprint fingerprint{}, origin{};
  Tensors tensors;  // exactly those that the config asks for, each of the right dtype and shape
  std::vector<std::unique_ptr<MappedFile>> files;
};

// Opens `folder`, maps its weights and checks them against its config. Throws Error(config) where that breaks a rule or
// the weights are not INT4, and Error(file) for everything else.
Checkpoint open_checkpoint(const std::string& folder);

// Describes every file that `open_checkpoint` reads by its size, times and inode: the text changes when a file does.
std::string checkpoint_stamp(const std::string& folder);

// Gives the mapped pages that have been read back to the system, so that they no longer count as memory of this
// process. A page that is used again is read again.
void release(const Checkpoint& checkpoint);
constexpr size_t kReleaseBytes = 32 << 20;  // read between two calls of `release`

// The last step of `open_checkpoint`, also for tensors that come from no file: throws as it does.
void check_checkpoint(const Checkpoint& checkpoint);

// What `folder` (config.json beside one safetensors file, or several under an index) holds: a hash of config.json and
// of each tensor's name, type, shape and bytes, wherever the tensors lie and whatever else the files say. Reads them
// all.
Fingerprint checkpoint_fingerprint(const std::string& folder);

}  // namespace mobilemoe
