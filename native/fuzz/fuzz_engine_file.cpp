// Any bytes as an engine file, or edits to a valid one. What passes must lie within the file, to the last byte.
#include <cstring>

#include "../src/engine_layout.h"
#include "../src/error.h"
#include "../src/repack.h"
#include "../tests/tiny_checkpoint.h"
#include "edits.h"

namespace {

using namespace mobilemoe;

std::string make_engine_file() {
  const tiny::Tiny tiny(tiny::config_json({{"vocab_size", "5"}, {"num_hidden_layers", "1"}}));
  Checkpoint checkpoint;
  checkpoint.place = "memory";
  checkpoint.config_json = tiny.config;
  checkpoint.config = parse_config(tiny.config);
  checkpoint.tensors = tiny.tensors;
  const Model model = repack_in_memory(checkpoint);
  return std::string(static_cast<const char*>(model.storage.get()), model.file_bytes);
}

unsigned touch(const Matrix& matrix) {
  return matrix.bytes() == 0 ? 0u : matrix.data[0] + matrix.data[matrix.bytes() - 1];
}

unsigned touch(const Ffn& ffn) { return ffn.width == 0 ? 0 : touch(ffn.gate_up) + touch(ffn.down); }

unsigned touch(const Model& model) {
  unsigned sum = touch(model.embedding) + touch(model.head);
  for (const LayerWeights& layer : model.layers) {
    sum += touch(layer.qkv) + touch(layer.o) + touch(layer.shared);
    for (const Ffn& expert : layer.experts) sum += touch(expert);
    sum += layer.input_norm[model.config.hidden_size - 1] > 0;
  }
  return sum;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string kFile = make_engine_file();
  if (size == 0) return 0;
  std::string bytes = kFile;
  if (data[0] % 4 == 0) {
    bytes.assign(reinterpret_cast<const char*>(data) + 1, size - 1);
  } else {
    // The weights hold nothing to check: only the header is edited.
    uint64_t json_bytes;
    std::memcpy(&json_bytes, kFile.data() + 16, sizeof json_bytes);
    std::string header = kFile.substr(0, sizeof(EngineHeader) + json_bytes);
    fuzz::edit(header, data + 1, size - 1);
    bytes = header + kFile.substr(sizeof(EngineHeader) + json_bytes);
  }
  // A copy of exactly this size, aligned as a mapping is, so that a sanitizer sees each byte too far.
  const size_t padded = (bytes.size() + kEngineAlign - 1) / kEngineAlign * kEngineAlign;
  const std::shared_ptr<uint8_t> copy(static_cast<uint8_t*>(std::aligned_alloc(kEngineAlign, padded)), std::free);
  std::memcpy(copy.get(), bytes.data(), bytes.size());
  try {
    volatile unsigned sum = touch(read_engine_file(copy.get(), bytes.size(), "it", copy));
    static_cast<void>(sum);
  } catch (const Error&) {
  }
  return 0;
}
