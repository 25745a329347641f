// Any bytes as a config.json and a safetensors file, which are then repacked if they pass: either the bytes themselves
// (config, a byte 0, weights) or edits to a valid checkpoint.
#include "edits.h"
#include "error.h"
#include "files/pieces.h"
#include "tiny_checkpoint.h"

namespace {

using namespace mobilemoe;

void open_and_repack(const std::string& config, const std::string& weights) {
  try {
    Checkpoint checkpoint;
    checkpoint.place = "memory";
    checkpoint.config_json = config;
    checkpoint.config = parse_config(config);
    checkpoint.tensors = read_safetensors(reinterpret_cast<const uint8_t*>(weights.data()), weights.size(), "weights");
    check_checkpoint(checkpoint);
    const Pieces pieces = cut_engine_file(checkpoint);
    std::vector<uint8_t> out(pieces.file_bytes);
    for (const Piece& piece : pieces.all) {
      if (piece.offset > out.size() || piece.bytes > out.size() - piece.offset) std::abort();
      piece.fill(out.data() + piece.offset);
    }
  } catch (const Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const tiny::Tiny kTiny(tiny::config_json({{"vocab_size", "5"}, {"num_hidden_layers", "1"}}));
  static const std::string kWeights = kTiny.weights();
  if (size == 0) return 0;
  const uint8_t kind = data[0] % 4;
  std::string config = kTiny.config, weights = kWeights;
  if (kind == 0) {
    const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
    const size_t zero = std::min(text.find('\0'), text.size());
    config = text.substr(0, zero);
    weights = text.substr(std::min(zero + 1, text.size()));
  } else if (kind == 1) {
    fuzz::edit(config, data + 1, size - 1);
  } else if (kind == 2) {
    fuzz::edit(weights, data + 1, size - 1);
  } else {
    const size_t half = (size - 1) / 2;
    fuzz::edit(config, data + 1, half);
    fuzz::edit(weights, data + 1 + half, size - 1 - half);
  }
  open_and_repack(config, weights);
  return 0;
}
