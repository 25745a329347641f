// A sequence on disk: 64 bytes of header, the tokens, the blocks of keys and values in use by layer and head, and the
// SHA-256 of all that.
#include <cstring>
#include <string>
#include <vector>

#include "atomic_file.h"
#include "engine.h"
#include "error.h"
#include "sha256.h"

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

[[noreturn]] void refuse(const std::string& path, const std::string& why) {
  throw Error(ErrorCode::file, path + " " + why);
}

size_t used_bytes(const KvCache& kv, size_t tokens) { return (tokens + kKvBlock - 1) / kKvBlock * kv.block_bytes(); }

}  // namespace

void Sequence::save(const std::string& path, const Fingerprint& fingerprint) const {
  const size_t bytes = used_bytes(kv_, tokens_.size());
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kVersion;
  header.kv_type = static_cast<uint32_t>(kv_.type());
  header.tokens = tokens_.size();
  header.block_bytes = bytes;
  header.model = fingerprint;
  AtomicFile file(path);
  Sha256 hash;
  size_t at = 0;
  const auto put = [&](const void* data, size_t size) {
    file.write_at(at, data, size);
    hash.update(data, size);
    at += size;
  };
  put(&header, sizeof header);
  put(tokens_.data(), tokens_.size() * sizeof(int));
  for (int layer = 0; layer < kv_.layers(); ++layer)
    for (int head = 0; head < kv_.heads(); ++head) put(kv_.blocks(layer, head), bytes);
  const auto digest = hash.finish();
  file.write_at(at, digest.data(), digest.size());
  file.commit();
}

void Sequence::load(const std::string& path, const Fingerprint& fingerprint) {
  const MappedFile file(path);
  constexpr size_t kDigest = sizeof(Fingerprint);
  Header header;
  if (file.size() < sizeof header + kDigest) refuse(path, "is no saved session: it is too short");
  std::memcpy(&header, file.data(), sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) refuse(path, "is no saved session");
  if (header.version != kVersion) refuse(path, "was saved by another version of the engine");
  if (header.model != fingerprint) refuse(path, "belongs to another model");
  if (header.kv_type != static_cast<uint32_t>(kv_.type())) refuse(path, "keeps its keys and values in another type");
  if (header.tokens > static_cast<uint64_t>(capacity())) {
    refuse(path,
           "holds " + std::to_string(header.tokens) + " tokens, but there is room for " + std::to_string(capacity()));
  }
  const size_t count = static_cast<size_t>(header.tokens), bytes = used_bytes(kv_, count);
  const size_t heads = static_cast<size_t>(kv_.layers()) * static_cast<size_t>(kv_.heads());
  const size_t payload = sizeof header + count * sizeof(int) + heads * bytes;
  if (header.block_bytes != bytes || file.size() != payload + kDigest) refuse(path, "is damaged: its size is wrong");
  Sha256 hash;
  hash.update(file.data(), payload);
  const auto digest = hash.finish();
  if (std::memcmp(digest.data(), file.data() + payload, kDigest) != 0)
    refuse(path, "is damaged: its checksum is wrong");
  tokens_.resize(count);
  if (count > 0) std::memcpy(tokens_.data(), file.data() + sizeof header, count * sizeof(int));
  const uint8_t* from = file.data() + sizeof header + count * sizeof(int);
  for (int layer = 0; layer < kv_.layers(); ++layer) {
    for (int head = 0; head < kv_.heads(); ++head, from += bytes) std::memcpy(kv_.blocks(layer, head), from, bytes);
  }
}

}  // namespace mobilemoe
