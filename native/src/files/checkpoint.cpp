#include "files/checkpoint.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <string_view>

#include "error.h"
#include "files/expected_tensors.h"
#include "files/hash_file.h"
#include "files/json.h"
#include "files/parse_config.h"
#include "files/tree_hash.h"

namespace mobilemoe {
namespace {

constexpr size_t kMaxConfigBytes = 1 << 20;
constexpr size_t kMaxIndexBytes = 16 << 20;

[[noreturn]] void fail(const std::string& what) { throw Error(ErrorCode::file, what); }

bool exists(const std::string& path) {
  struct stat status{};
  return stat(path.c_str(), &status) == 0;
}

std::string read_text(const std::string& path, size_t limit) {
  const MappedFile file(path);
  if (file.size() > limit) {
    fail(path + " is " + std::to_string(file.size()) + " bytes, but may be no more than " + std::to_string(limit));
  }
  std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  constexpr std::string_view kMark = "\xEF\xBB\xBF";  // the byte-order mark of editors on Windows
  if (text.substr(0, kMark.size()) == kMark) text.remove_prefix(kMark.size());
  return std::string(text);
}

// The names of the tensors in each file of the folder, as the index says.
using Shards = std::map<std::string, std::vector<std::string>>;

Shards read_index(const std::string& path, const std::string& text) {
  const Json index = parse_json(text, path, ErrorCode::file);
  const Json* weight_map = index.find("weight_map");
  if (weight_map == nullptr || weight_map->members() == nullptr || weight_map->members()->empty()) {
    fail(path + " holds no weight_map");
  }
  Shards shards;
  for (const JsonMember& member : *weight_map->members()) {
    const std::string* shard = member.value.text();
    constexpr std::string_view kEnd = ".safetensors";
    // Only a plain file name is accepted: an index must not lead out of its folder.
    if (shard == nullptr || shard->find_first_of(std::string_view("/\\\0", 3)) != std::string::npos ||
        shard->size() < kEnd.size() || shard->compare(shard->size() - kEnd.size(), kEnd.size(), kEnd) != 0) {
      fail(path + " puts " + shorten(member.name) + " into something else than a safetensors file of its folder");
    }
    shards[*shard].push_back(member.name);
  }
  return shards;
}

struct Files {
  std::string config_json;
  std::string index_json;  // empty without an index
  Shards shards;           // without an index: one, with no names
};

Files find_files(const std::string& folder) {
  struct stat status{};
  if (stat(folder.c_str(), &status) != 0 || !S_ISDIR(status.st_mode)) {
    fail(folder + " is not a folder: give the folder that holds config.json");
  }
  Files files;
  files.config_json = read_text(folder + "/config.json", kMaxConfigBytes);
  const std::string index = folder + "/model.safetensors.index.json";
  if (exists(folder + "/model.safetensors") || !exists(index)) {
    files.shards["model.safetensors"];
  } else {
    files.index_json = read_text(index, kMaxIndexBytes);
    files.shards = read_index(index, files.index_json);
  }
  return files;
}

void hash_text(Sha256& hash, std::string_view text) {
  const uint64_t size = text.size();
  hash.update(&size, sizeof size);
  hash.update(text.data(), text.size());
}

std::string show_shape(const Tensor& tensor) {
  std::string out = tensor.dtype + " [";
  for (size_t i = 0; i < tensor.shape.size(); ++i) out += (i == 0 ? "" : ", ") + std::to_string(tensor.shape[i]);
  return out + "]";
}

// The fingerprint of a mapped checkpoint. Pages are released as soon as they have been read.
Fingerprint fingerprint_of(const Checkpoint& checkpoint) {
  ThreadPool pool(file_threads());
  Sha256 hash;
  hash_text(hash, "mobilemoe checkpoint 2");
  hash_text(hash, checkpoint.config_json);
  size_t unreleased = 0;
  for (const auto& [name, tensor] : checkpoint.tensors) {
    hash_text(hash, name);
    hash_text(hash, show_shape(tensor));
    const auto digest =
        tree_hash(pool, tensor.bytes, [data = tensor.data](size_t offset, size_t, int) { return data + offset; });
    hash.update(digest.data(), digest.size());
    unreleased += tensor.bytes;
    if (unreleased < kReleaseBytes) continue;
    release(checkpoint);
    unreleased = 0;
  }
  return hash.finish();
}

std::string list(const std::vector<std::string>& names) {
  constexpr size_t kListed = 4;
  std::string out;
  for (size_t i = 0; i < std::min(names.size(), kListed); ++i) out += (i == 0 ? "" : ", ") + shorten(names[i]);
  if (names.size() > kListed) out += " and " + std::to_string(names.size() - kListed) + " more";
  return names.empty() ? "none" : out;
}

// Names in `these` that are not in `those`; both are sorted.
template <class Names>
std::vector<std::string> names_beyond(const Names& these, const Tensors& those) {
  std::vector<std::string> out;
  for (const auto& [name, tensor] : these) {
    if (those.count(name) == 0) out.push_back(name);
  }
  return out;
}

void add_shard(Checkpoint& checkpoint, const std::string& folder, const std::string& name,
               const std::vector<std::string>& indexed) {
  const std::string path = folder + "/" + name;
  checkpoint.files.push_back(std::make_unique<MappedFile>(path));
  const MappedFile& file = *checkpoint.files.back();
  Tensors tensors = read_safetensors(file.data(), file.size(), path);
  if (!indexed.empty()) {
    const bool fits =
        tensors.size() == indexed.size() &&
        std::all_of(indexed.begin(), indexed.end(), [&](const auto& each) { return tensors.count(each); });
    if (!fits) fail(path + " holds other tensors than the index beside it says");
  }
  checkpoint.tensors.merge(tensors);  // no name is in two shards: the index has each once
}

// Maps the files and lists their tensors, without checking them against the config.
Checkpoint map_checkpoint(const std::string& folder) {
  const Files files = find_files(folder);
  Checkpoint checkpoint;
  checkpoint.place = folder;
  checkpoint.config_json = files.config_json;
  for (const auto& [name, indexed] : files.shards) add_shard(checkpoint, folder, name, indexed);
  return checkpoint;
}

}  // namespace

void release(const Checkpoint& checkpoint) {
  for (const auto& file : checkpoint.files) {
    madvise(const_cast<uint8_t*>(file->data()), file->size(), MADV_DONTNEED);
  }
}

Checkpoint open_checkpoint(const std::string& folder) {
  Checkpoint checkpoint = map_checkpoint(folder);
  try {
    checkpoint.config = parse_config(checkpoint.config_json);
  } catch (const Error& error) {
    throw Error(error.code(), folder + "/config.json: " + error.what());
  }
  check_checkpoint(checkpoint);
  checkpoint.fingerprint = checkpoint.origin = fingerprint_of(checkpoint);
  return checkpoint;
}

std::string checkpoint_stamp(const std::string& folder) {
  const Files files = find_files(folder);
  std::string stamp = files.config_json + files.index_json;
  for (const auto& [name, names] : files.shards) {
    const std::string path = folder + "/" + name;
    struct stat status{};
    if (stat(path.c_str(), &status) != 0) fail(path + " is gone");
#if defined(__APPLE__)
    const timespec modified = status.st_mtimespec, changed = status.st_ctimespec;
#else
    const timespec modified = status.st_mtim, changed = status.st_ctim;
#endif
    for (const auto number : {static_cast<int64_t>(status.st_dev), static_cast<int64_t>(status.st_ino),
                              static_cast<int64_t>(status.st_size), static_cast<int64_t>(modified.tv_sec),
                              static_cast<int64_t>(modified.tv_nsec), static_cast<int64_t>(changed.tv_sec),
                              static_cast<int64_t>(changed.tv_nsec)}) {
      stamp += " " + std::to_string(number);
    }
  }
  return stamp;
}

void check_checkpoint(const Checkpoint& checkpoint) {
  const Config& config = checkpoint.config;
  const Tensors& tensors = checkpoint.tensors;
  check_int4(config, checkpoint.place);
  // Checked before the table of expected tensors is built, so that a wrong number of layers costs no memory.
  if (static_cast<size_t>(config.num_hidden_layers) > tensors.size()) {
    fail(checkpoint.place + " has only " + std::to_string(tensors.size()) + " tensors, but config.json says " +
         std::to_string(config.num_hidden_layers) + " layers");
  }
  const Tensors expected = expected_tensors(config);
  const std::vector<std::string> missing = names_beyond(expected, tensors), unknown = names_beyond(tensors, expected);
  if (!missing.empty() || !unknown.empty()) {
    fail(checkpoint.place + " is not the INT4 checkpoint that its config.json describes: missing tensors: " +
         list(missing) + "; unknown tensors: " + list(unknown));
  }
  for (const auto& [name, wanted] : expected) {
    const Tensor& found = tensors.at(name);
    if (found.dtype != wanted.dtype || found.shape != wanted.shape) {
      fail(checkpoint.place + ": tensor " + shorten(name) + " is " + show_shape(found) + ", but config.json asks for " +
           show_shape(wanted));
    }
  }
}

Fingerprint checkpoint_fingerprint(const std::string& folder) { return fingerprint_of(map_checkpoint(folder)); }

}  // namespace mobilemoe
