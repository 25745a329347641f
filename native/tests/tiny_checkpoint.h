// Random INT4 checkpoints of a few kilobytes, in memory and in folders, for tests and fuzzers.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "files/checkpoint.h"
#include "files/expected_tensors.h"
#include "files/parse_config.h"

namespace mobilemoe::tiny {

// A config.json; `changes` replace the text of a field or add one, and an empty text removes it.
inline std::string config_json(const std::map<std::string, std::string>& changes = {}) {
  std::map<std::string, std::string> fields = {
      {"model_type", "\"mobilemoe\""},
      {"vocab_size", "50"},
      {"hidden_size", "64"},
      {"num_hidden_layers", "2"},
      {"num_attention_heads", "4"},
      {"num_key_value_heads", "1"},
      {"head_dim", "8"},
      {"intermediate_size", "64"},
      {"intermediate_size_mlp", "96"},
      {"num_local_experts", "3"},
      {"num_experts_per_tok", "2"},
      {"eos_token_id", "[7, 9]"},
      {"quantization", R"({"format": "mobilemoe-int4-g32", "expert_group_axis": "out"})"},
  };
  for (const auto& [name, text] : changes) fields[name] = text;
  std::string out;
  for (const auto& [name, text] : fields) {
    if (!text.empty()) out += (out.empty() ? "{\"" : ",\n \"") + name + "\": " + text;
  }
  return out + "}\n";
}

inline const std::map<std::string, std::string> kInAxis = {{"quantization", R"({"expert_group_axis": "in"})"}};
inline const std::map<std::string, std::string> kDense = {{"ffn_type", "\"dense\""},
                                                          {"num_local_experts", "0"},
                                                          {"num_experts_per_tok", "0"},
                                                          {"intermediate_size_mlp", "0"},
                                                          {"qk_norm", "\"head_weight\""}};
inline const std::map<std::string, std::string> kOlmoe = {{"router_score", "\"softmax\""},
                                                          {"qk_norm", "\"projection_weight\""},
                                                          {"intermediate_size_mlp", "0"},
                                                          {"tie_word_embeddings", "false"}};

// The container's bytes for these tensors.
inline std::string container(const Tensors& tensors) {
  std::string table = "{\"__metadata__\":{\"format\":\"pt\"}", payload;
  for (const auto& [name, tensor] : tensors) {
    std::string shape;
    for (const int64_t extent : tensor.shape) shape += (shape.empty() ? "" : ",") + std::to_string(extent);
    table += ",\"" + name + "\":{\"dtype\":\"" + tensor.dtype + "\",\"shape\":[" + shape + "],\"data_offsets\":[" +
             std::to_string(payload.size()) + "," + std::to_string(payload.size() + tensor.bytes) + "]}";
    payload.append(reinterpret_cast<const char*>(tensor.data), tensor.bytes);
  }
  table += "}";
  std::string out;
  for (size_t i = 0; i < 8; ++i) out.push_back(static_cast<char>(table.size() >> (8 * i) & 0xFF));
  return out + table + payload;
}

// A checkpoint of random weights; the tensors are views of `bytes`.
struct Tiny {
  std::string config;
  std::map<std::string, std::vector<uint8_t>> bytes;
  Tensors tensors;

  explicit Tiny(std::string config_text, uint32_t seed = 1) : config(std::move(config_text)) {
    std::mt19937 random(seed);
    for (const auto& [name, wanted] : expected_tensors(parse_config(config))) {
      size_t size = wanted.dtype == "U8" ? 1 : wanted.dtype == "F32" ? 4 : 2;
      for (const int64_t extent : wanted.shape) size *= static_cast<size_t>(extent);
      std::vector<uint8_t>& data = bytes[name];
      data.resize(size);
      for (uint8_t& byte : data) byte = static_cast<uint8_t>(random());
      if (wanted.dtype != "U8") {
        // No infinities and no NaN, which are never equal to themselves: the exponent's top bit stays 0.
        const size_t item = wanted.dtype == "F32" ? 4 : 2;
        for (size_t i = item - 1; i < size; i += item) data[i] &= 0xBF;
      }
      tensors[name] = {wanted.dtype, wanted.shape, data.data(), size};
    }
  }
  Tiny(const Tiny&) = delete;
  Tiny& operator=(const Tiny&) = delete;

  std::string weights() const { return container(tensors); }
};

inline void write_file(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary).write(text.data(), static_cast<std::streamsize>(text.size()));
}

inline std::string read_file(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

// A new folder that goes when the test ends.
class TempFolder {
 public:
  TempFolder() : path_((std::filesystem::temp_directory_path() / "mobilemoe-test-XXXXXX").string()) {
    if (mkdtemp(path_.data()) == nullptr) std::abort();
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

  // Writes the checkpoint here.
  void put(const Tiny& tiny) const {
    write_file(*this / "config.json", tiny.config);
    write_file(*this / "model.safetensors", tiny.weights());
  }

 private:
  std::string path_;
};

}  // namespace mobilemoe::tiny
