#include "files/engine_file.h"

#include <cstring>
#include <string_view>

#include "error.h"
#include "files/engine_layout.h"
#include "files/expected_tensors.h"
#include "files/expert_file.h"
#include "files/hash_file.h"
#include "files/json.h"
#include "files/mapped_file.h"
#include "files/parse_config.h"

namespace mobilemoe {
namespace {

constexpr uint64_t kMaxJsonBytes = 64 << 20;

[[noreturn]] void fail(const std::string& what) { throw Error(ErrorCode::file, what); }

// `size` is that of the file, of which at least the header and the JSON are in memory.
EngineHeader read_header(const uint8_t* data, size_t size, const std::string& name) {
  EngineHeader header;
  if (size < sizeof header || std::memcmp(data, kEngineMagic, sizeof header.magic) != 0) {
    fail(name + " is not an engine file: make it again from its checkpoint");
  }
  std::memcpy(&header, data, sizeof header);
  if (header.version != kEngineVersion) {
    fail(name + " is an engine file of version " + std::to_string(header.version) + ", but this engine reads version " +
         std::to_string(kEngineVersion) + ": make it again from its checkpoint");
  }
  if (header.file_bytes != size) {
    fail(name + " is " + std::to_string(size) + " bytes, but should be " + std::to_string(header.file_bytes) +
         ": it is cut short or has bytes appended; make it again from its checkpoint");
  }
  if (header.shared_pages == 0 || header.shared_pages > size / kEnginePage ||
      header.json_bytes > size - sizeof header || header.json_bytes > kMaxJsonBytes ||
      header.json_bytes % kEngineAlign != 0) {
    fail(name + " has a damaged header: make it again from its checkpoint");
  }
  return header;
}

// Throws unless the file's table of sections is exactly what the config asks for: every part at its place, of its size.
void check_sections(const Json& sections, const EngineLayout& layout, size_t size, const std::string& name) {
  for (const auto& [part, wanted] : layout.sections()) {
    const Json* found = sections.find(part);
    const Json::Items* numbers = found == nullptr ? nullptr : found->items();
    const auto is = [&](size_t at, size_t value) {
      const int64_t* number = (*numbers)[at].integer();
      return number != nullptr && *number >= 0 && static_cast<uint64_t>(*number) == value;
    };
    if (numbers == nullptr || numbers->size() != 2 || !is(0, wanted.offset) || !is(1, wanted.bytes)) {
      fail(name + ": section " + part + " is not where its config puts it: make the file again from its checkpoint");
    }
  }
  if (sections.members()->size() != layout.sections().size() || layout.end() != size) {
    fail(name + " holds other sections than its config asks for: make it again from its checkpoint");
  }
}

LayerWeights place_layer(const Config& config, const EngineLayout& layout, const uint8_t* data, bool experts,
                         int index) {
  const int hidden = config.hidden_size;
  const auto at = [&](const char* part) { return data + layout.offset(layer_stem(index) + part); };
  const auto floats = [&](const char* part) { return reinterpret_cast<const float*>(at(part)); };
  LayerWeights layer;
  layer.index = index;
  layer.input_norm = floats("input_norm");
  layer.post_attention_norm = floats("post_attention_norm");
  layer.qkv = {at("qkv"), qkv_rows(config), hidden, Axis::in};
  layer.o = {at("o"), hidden, config.q_width(), Axis::in};
  if (config.qk_norm == QkNorm::head_weight || config.qk_norm == QkNorm::projection_weight) {
    layer.q_norm = floats("q_norm");
    layer.k_norm = floats("k_norm");
  }
  if (!config.is_moe) {
    layer.shared = place_ffn(at("shared"), shape_of_ffn(hidden, config.intermediate_size, Axis::in));
    return layer;
  }
  layer.router = floats("router");
  layer.expert_bias = floats("expert_bias");
  const Ffn elsewhere = shape_of_ffn(hidden, config.intermediate_size, config.expert_axis);
  layer.experts.assign(config.num_local_experts, elsewhere);
  for (int i = 0; experts && i < config.num_local_experts; ++i) {
    layer.experts[i] = place_ffn(at("experts") + i * expert_bytes(config), elsewhere);
  }
  if (config.intermediate_size_mlp > 0) {
    layer.shared = place_ffn(at("shared"), shape_of_ffn(hidden, config.intermediate_size_mlp, Axis::in));
  }
  return layer;
}

// The model in the first `mapped` bytes of an engine file of `size`: all of them, or those before the routed experts,
// which `file` then reads.
Model read(const uint8_t* data, size_t mapped, size_t size, const std::string& name,
           const std::shared_ptr<const MappedFile>& file) {
  const EngineHeader header = read_header(data, size, name);
  if (header.json_bytes > mapped - sizeof header)
    fail(name + " has a damaged header: make it again from its checkpoint");
  const std::string_view text(reinterpret_cast<const char*>(data) + sizeof header, header.json_bytes);
  const Json json = parse_json(text, name + "'s header", ErrorCode::file, kJsonDepth + 1);
  const Json *config = json.find("config"), *sections = json.find("sections");
  if (config == nullptr || sections == nullptr || sections->members() == nullptr) {
    fail(name + " has a header without config or sections: make it again from its checkpoint");
  }
  Model model;
  model.config_json = config->source;
  std::unique_ptr<EngineLayout> layout;
  try {
    model.config = parse_config(model.config_json);
    check_int4(model.config, "it");
    // Checked before the layout is made, so that a wrong number of layers costs no memory.
    if (static_cast<size_t>(model.config.num_hidden_layers) > sections->members()->size()) {
      throw Error(ErrorCode::config, "it has more layers than the file has sections");
    }
    layout = std::make_unique<EngineLayout>(model.config, sizeof header + header.json_bytes);
  } catch (const Error& error) {
    fail(name + " has a damaged config: " + error.what());
  }
  check_sections(*sections, *layout, size, name);
  if (layout->shared_end() != size_t{header.shared_pages} * kEnginePage) {
    fail(name + " has a damaged header: make it again from its checkpoint");
  }

  const int table_rows = round_up(model.config.vocab_size, kPanel);
  const auto table = [&](const char* part) {
    return Matrix{data + layout->offset(part), table_rows, model.config.hidden_size, Axis::in};
  };
  model.fingerprint = header.fingerprint;
  model.origin = header.origin;
  model.embedding = table("embedding");
  model.head = model.config.tie_word_embeddings ? model.embedding : table("head");
  model.norm = reinterpret_cast<const float*>(data + layout->offset("norm"));
  for (int layer = 0; layer < model.config.num_hidden_layers; ++layer) {
    model.layers.push_back(place_layer(model.config, *layout, data, mapped == size, layer));
  }
  model.file_bytes = size;
  if (mapped < size) model.expert_source = std::make_shared<ExpertFile>(file, name, model.config, *layout);
  return model;
}

}  // namespace

Model read_engine_file(const uint8_t* data, size_t size, const std::string& name, std::shared_ptr<const void> storage) {
  Model model = read(data, size, size, name, nullptr);
  model.storage = std::move(storage);
  return model;
}

Model map_engine_file(const std::string& path, bool experts) {
  size_t most = SIZE_MAX;
  if (!experts) {
    const MappedFile file(path, sizeof(EngineHeader));
    most = read_header(file.data(), file.file_size(), path).shared_pages * kEnginePage;
  }
  const auto file = std::make_shared<MappedFile>(path, most);
  Model model = read(file->data(), file->size(), file->file_size(), path, file);
  if (!experts) file->read_all();
  model.storage = file;
  return model;
}

void verify_engine_file(const std::string& path) {
  EngineHeader header;
  {
    const MappedFile file(path);
    header = read_header(file.data(), file.size(), path);
  }
  if (hash_engine_file(path) != header.hash) {
    fail(path + " is damaged: its hash is not the one that was written; make it again from its checkpoint");
  }
}

}  // namespace mobilemoe
