// Any bytes as an engine file, or edits to a valid one. If such a file is accepted, all of its weights must lie within
// it.
#include "edits.h"
#include "error.h"
#include "tiny_engine_file.h"

namespace {

using namespace mobilemoe;

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
  static const std::string kFile =
      tiny::engine_file(tiny::Tiny(tiny::config_json({{"vocab_size", "5"}, {"num_hidden_layers", "1"}})));
  if (size == 0) return 0;
  std::string bytes;
  if (data[0] % 4 == 0) {
    bytes.assign(reinterpret_cast<const char*>(data) + 1, size - 1);
  } else {
    // Only the header is edited: no values of the weights are checked, so editing them would find nothing.
    bytes = kFile.substr(0, tiny::header_bytes(kFile));
    fuzz::edit(bytes, data + 1, size - 1);
    bytes += kFile.substr(tiny::header_bytes(kFile));
  }
  try {
    volatile unsigned sum = touch(tiny::read_engine_file(bytes));
    static_cast<void>(sum);
  } catch (const Error&) {
  }
  return 0;
}
