#include "files/safetensors.h"

#include <algorithm>
#include <string_view>

#include "error.h"
#include "files/json.h"

namespace mobilemoe {
namespace {

constexpr size_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 1 << 23;  // some hundred thousand tensors; the same as in the Python reader
constexpr size_t kMaxRank = 32;

struct Dtype {
  std::string_view name;
  uint64_t bytes;
};
constexpr Dtype kDtypes[] = {{"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"I16", 2}, {"U16", 2}, {"F16", 2}, {"BF16", 2},
                             {"I32", 4},  {"U32", 4}, {"F32", 4}, {"F64", 8}, {"I64", 8}, {"U64", 8}};

[[noreturn]] void fail(const std::string& path, const std::string& what) { throw Error(ErrorCode::file, path + what); }

[[noreturn]] void fail_tensor(const std::string& path, const std::string& name, const char* what) {
  fail(path, " has a damaged header: tensor " + shorten(name) + what);
}

// The size of a tensor of this shape. The other extents of an empty tensor are checked as well.
uint64_t count_bytes(const std::string& path, const std::string& name, uint64_t item,
                     const std::vector<int64_t>& shape) {
  uint64_t claimed = item;
  for (const int64_t extent : shape) {
    if (extent > 0 && claimed > static_cast<uint64_t>(INT64_MAX) / static_cast<uint64_t>(extent)) {
      fail_tensor(path, name, " has an impossible shape");
    }
    if (extent > 0) claimed *= static_cast<uint64_t>(extent);
  }
  return std::find(shape.begin(), shape.end(), 0) == shape.end() ? claimed : 0;
}

// `payload` are the bytes after the header.
Tensor read_entry(const std::string& path, const JsonMember& member, const uint8_t* payload, size_t payload_bytes) {
  const std::string& name = member.name;
  const Json *dtype = member.value.find("dtype"), *shape = member.value.find("shape");
  const Json* offsets = member.value.find("data_offsets");
  if (dtype == nullptr || shape == nullptr || offsets == nullptr || member.value.members()->size() != 3) {
    fail_tensor(path, name, " is not described by dtype, shape and data_offsets");
  }
  const auto is_count = [](const Json& value) { return value.integer() != nullptr && *value.integer() >= 0; };
  const auto is_counts = [&is_count](const Json& list) {
    return list.items() != nullptr && std::all_of(list.items()->begin(), list.items()->end(), is_count);
  };
  if (!is_counts(*shape)) fail_tensor(path, name, " has a shape that is not a list of whole numbers");
  if (shape->items()->size() > kMaxRank) fail_tensor(path, name, " has an impossible shape");
  if (!is_counts(*offsets) || offsets->items()->size() != 2) {
    fail_tensor(path, name, " has data_offsets that are not two whole numbers");
  }
  Tensor out;
  const Dtype* known = nullptr;
  for (const Dtype& each : kDtypes) {
    if (dtype->text() != nullptr && *dtype->text() == each.name) known = &each;
  }
  if (known == nullptr) fail_tensor(path, name, " has an unknown dtype");
  out.dtype = known->name;
  for (const Json& extent : *shape->items()) out.shape.push_back(*extent.integer());
  const auto begin = static_cast<uint64_t>(*(*offsets->items())[0].integer());
  const auto end = static_cast<uint64_t>(*(*offsets->items())[1].integer());
  if (end < begin || end - begin != count_bytes(path, name, known->bytes, out.shape)) {
    fail_tensor(path, name, " has data_offsets that do not fit its shape and dtype");
  }
  if (end > payload_bytes) fail_tensor(path, name, " ends beyond the file: download or write it again");
  out.data = payload + begin;
  out.bytes = end - begin;
  return out;
}

}  // namespace

size_t safetensors_header_bytes(const uint8_t* data, size_t size, const std::string& path) {
  if (size < kLengthBytes) fail(path, " is " + std::to_string(size) + " bytes, too short for a safetensors file");
  uint64_t length = 0;
  for (size_t i = kLengthBytes; i-- > 0;) length = length << 8 | data[i];
  if (length > size - kLengthBytes || length > kMaxHeaderBytes) {
    fail(path, " claims a header of " + std::to_string(length) +
                   " bytes, more than the file or the format allows: download or write it again");
  }
  return kLengthBytes + length;
}

Tensors read_safetensors(const uint8_t* data, size_t size, const std::string& path) {
  const size_t header = safetensors_header_bytes(data, size, path);
  const std::string_view text(reinterpret_cast<const char*>(data) + kLengthBytes, header - kLengthBytes);
  if (text.substr(0, 1) != "{") fail(path, " has a damaged header: it does not begin with {");
  const Json table = parse_json(text, path + "'s header", ErrorCode::file);

  Tensors out;
  for (const JsonMember& member : *table.members()) {
    if (member.name == "__metadata__") continue;
    out.emplace(member.name, read_entry(path, member, data + header, size - header));
  }

  // In the order of their offsets, each tensor must begin where the last one ended, so there are no holes or overlaps.
  std::vector<const Tensors::value_type*> by_place;
  for (const auto& entry : out) by_place.push_back(&entry);
  std::sort(by_place.begin(), by_place.end(), [](const auto* a, const auto* b) {
    return a->second.data < b->second.data || (a->second.data == b->second.data && a->second.bytes < b->second.bytes);
  });
  const uint8_t* at = data + header;
  for (const auto* entry : by_place) {
    if (entry->second.data < at) fail_tensor(path, entry->first, " overlaps the one before");
    if (entry->second.data > at) fail_tensor(path, entry->first, " leaves a hole before itself");
    at += entry->second.bytes;
  }
  if (at != data + size) {
    fail(path, " is " + std::to_string(size) + " bytes, but its tensors end at " + std::to_string(at - data) +
                   ": it has bytes appended or is damaged; download or write it again");
  }
  return out;
}

}  // namespace mobilemoe
