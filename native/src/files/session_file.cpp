#include "files/session_file.h"

#include <cstring>

#include "error.h"
#include "files/atomic_file.h"
#include "files/mapped_file.h"
#include "files/sha256.h"

namespace mobilemoe {
namespace {

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t kv_type;
  uint64_t tokens;
  uint64_t block_bytes;  // of all tokens' blocks of one layer and head
  Fingerprint model;
};
static_assert(sizeof(Header) == 64);

constexpr char kMagic[8] = {'M', 'M', 'S', 'E', 'S', 'S', 'N', '\n'};
constexpr uint32_t kVersion = 1;
constexpr size_t kDigest = sizeof(Fingerprint);

[[noreturn]] void refuse(const std::string& path, const std::string& why) {
  throw Error(ErrorCode::file, path + " " + why);
}

// The header of a session of this model, whose tokens lie within the file.
Header header_of(const MappedFile& file, const std::string& path, KvType kv, const Fingerprint& model) {
  Header header;
  if (file.size() < sizeof header + kDigest) refuse(path, "is no saved session: it is too short");
  std::memcpy(&header, file.data(), sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) refuse(path, "is no saved session");
  if (header.version != kVersion) refuse(path, "was saved by another version of the engine");
  if (header.model != model) refuse(path, "belongs to another model");
  if (header.kv_type != static_cast<uint32_t>(kv)) refuse(path, "keeps its keys and values in another type");
  if (header.tokens > (file.size() - sizeof header - kDigest) / sizeof(int)) {
    refuse(path, "is damaged: its size is wrong");
  }
  return header;
}

}  // namespace

void save_sequence(const Sequence& sequence, const std::string& path, const Fingerprint& model) {
  const KvCache& kv = sequence.kv();
  const std::vector<int>& tokens = sequence.tokens();
  const size_t bytes = kv.used_bytes(sequence.length());
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kVersion;
  header.kv_type = static_cast<uint32_t>(kv.type());
  header.tokens = tokens.size();
  header.block_bytes = bytes;
  header.model = model;
  AtomicFile file(path, 0600);  // a conversation is for its owner's eyes
  Sha256 hash;
  size_t at = 0;
  const auto put = [&](const void* data, size_t size) {
    file.write_at(at, data, size);
    hash.update(data, size);
    at += size;
  };
  put(&header, sizeof header);
  put(tokens.data(), tokens.size() * sizeof(int));
  for (int layer = 0; layer < kv.layers(); ++layer) {
    for (int head = 0; head < kv.heads(); ++head) put(kv.block(layer, head, 0), bytes);
  }
  const auto digest = hash.finish();
  file.write_at(at, digest.data(), digest.size());
  file.commit();
}

void load_sequence(Sequence& sequence, const std::string& path, const Fingerprint& model) {
  KvCache& kv = sequence.kv();
  const MappedFile file(path);
  const Header header = header_of(file, path, kv.type(), model);
  if (header.tokens > static_cast<uint64_t>(sequence.capacity())) {
    refuse(path, "holds " + std::to_string(header.tokens) + " tokens, but the sequence's capacity is " +
                     std::to_string(sequence.capacity()));
  }
  const int count = static_cast<int>(header.tokens);
  const size_t bytes = kv.used_bytes(count), token_bytes = header.tokens * sizeof(int);
  const size_t payload = sizeof header + token_bytes + kv.layers() * (kv.heads() * bytes);
  if (header.block_bytes != bytes || file.size() != payload + kDigest) refuse(path, "is damaged: its size is wrong");
  Sha256 hash;
  hash.update(file.data(), payload);
  const auto digest = hash.finish();
  if (std::memcmp(digest.data(), file.data() + payload, kDigest) != 0) {
    refuse(path, "is damaged: its checksum is wrong");
  }
  const uint8_t* tokens = file.data() + sizeof header;
  const uint8_t* from = tokens + token_bytes;
  for (int layer = 0; layer < kv.layers(); ++layer) {
    for (int head = 0; head < kv.heads(); ++head, from += bytes) std::memcpy(kv.block(layer, head, 0), from, bytes);
  }
  sequence.truncate(0);
  sequence.append(reinterpret_cast<const int*>(tokens), count);  // aligned: a page and a header of 64 bytes come before
}

std::vector<int> session_tokens(const std::string& path, KvType kv, const Fingerprint& model) {
  const MappedFile file(path);
  std::vector<int> tokens(header_of(file, path, kv, model).tokens);
  std::memcpy(tokens.data(), file.data() + sizeof(Header), tokens.size() * sizeof(int));
  return tokens;
}

}  // namespace mobilemoe
