// The safetensors container: 8 bytes of header length, a JSON table of tensors, then their bytes, end to end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace mobilemoe {

struct Tensor {
  std::string dtype;  // as in the file: "U8", "F16", "BF16", "F32", ...
  std::vector<int64_t> shape;
  const uint8_t* data = nullptr;  // of any alignment: read it with memcpy
  size_t bytes = 0;
};

using Tensors = std::map<std::string, Tensor>;

// The size of the length and the table together. Throws Error(file) where the file is shorter than that.
size_t safetensors_header_bytes(const uint8_t* data, size_t size, const std::string& path);

// The tensors of a file in memory, as views of its bytes. Everything that the table says is checked: tensors neither
// overlap nor leave holes, and the last one ends where the file ends. Throws Error(file) that begins with `path`.
Tensors read_safetensors(const uint8_t* data, size_t size, const std::string& path);

}  // namespace mobilemoe
