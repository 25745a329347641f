// The engine file keeps every weight, and is refused unless it is whole.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "check.h"
#include "files/engine_layout.h"
#include "files/repack.h"
#include "files/tree_hash.h"
#include "tiny_engine_file.h"

namespace mobilemoe {
namespace {

using tiny::config_json;
using tiny::TempFolder;
using tiny::Tiny;

// One weight: its nibble in -8..7 and the bits of its scale.
struct Weight {
  int q;
  int scale;
  bool operator==(const Weight& other) const { return q == other.q && scale == other.scale; }
};

int half_bits(const uint8_t* at) { return at[0] | at[1] << 8; }

// As matrix.h describes it, one weight at a time.
Weight at(const Matrix& matrix, int output, int input) {
  const int panel = output / kPanel, o = output % kPanel, group = input / kGroup, i = input % kGroup;
  const uint8_t byte = matrix.nibbles(panel)[group * kGroupBytes + i / 8 * kRun + 4 * o + i % 4];
  const int q = (i % 8 < 4 ? byte & 15 : byte >> 4) - 8;
  const uint16_t* scales = matrix.scales(panel);
  return {q, matrix.axis == Axis::in ? scales[group * kPanel + o] : scales[group * kGroup + i]};
}

// Row `row`, column `column` of stored INT4 with `columns` columns (spec 3.1).
Weight stored(const Tiny& tiny, const std::string& nibbles, const std::string& scales, int columns, int row,
              int column) {
  const size_t index = static_cast<size_t>(row) * static_cast<size_t>(columns) + static_cast<size_t>(column);
  const int byte = tiny.bytes.at(nibbles)[index / 2], nibble = index % 2 == 0 ? byte & 15 : byte >> 4;
  return {nibble < 8 ? nibble : nibble - 16, half_bits(&tiny.bytes.at(scales)[index / kGroup * 2])};
}

// Rows from `first` on of the matrix are the linear layer `stem` [outputs, inputs], padded with zeros to 16 rows.
void check_linear(const Matrix& matrix, int first, const Tiny& tiny, const std::string& stem, int outputs, int inputs) {
  CHECK_EQ(matrix.inputs, inputs);
  CHECK(first + round_up(outputs, kPanel) <= matrix.outputs);
  for (int o = 0; o < round_up(outputs, kPanel); ++o) {
    for (int i = 0; i < inputs; ++i) {
      const Weight wanted =
          o < outputs ? stored(tiny, stem + ".qweight", stem + ".weight_scale", inputs, o, i) : Weight{0, 0};
      CHECK(at(matrix, first + o, i) == wanted);
    }
  }
}

// Blocks of 32 rows are alternately gate and up.
int gate_row(int row) { return row / 32 * 64 + row % 32; }

void check_ffn(const Ffn& ffn, const Tiny& tiny, const std::string& stem, int hidden, int width) {
  CHECK_EQ(ffn.width, width);
  CHECK_EQ(ffn.gate_up.outputs, 2 * width);
  for (int row = 0; row < width; ++row) {
    for (int i = 0; i < hidden; ++i) {
      CHECK(at(ffn.gate_up, gate_row(row), i) ==
            stored(tiny, stem + ".gate_proj.qweight", stem + ".gate_proj.weight_scale", hidden, row, i));
      CHECK(at(ffn.gate_up, gate_row(row) + 32, i) ==
            stored(tiny, stem + ".up_proj.qweight", stem + ".up_proj.weight_scale", hidden, row, i));
    }
  }
  check_linear(ffn.down, 0, tiny, stem + ".down_proj", hidden, width);
}

void check_expert(const Ffn& ffn, const Tiny& tiny, const std::string& stem, int expert, const Config& config) {
  const int hidden = config.hidden_size, width = config.intermediate_size;
  const bool is_out = config.expert_axis == Axis::out;
  CHECK(ffn.gate_up.axis == config.expert_axis && ffn.down.axis == config.expert_axis);
  const auto weight = [&](const std::string& part, int inputs, int outputs, int input, int output) {
    const int rows = is_out ? inputs : outputs, columns = is_out ? outputs : inputs;
    return stored(tiny, stem + part + "_qweight", stem + part + "_scale", columns,
                  expert * rows + (is_out ? input : output), is_out ? output : input);
  };
  for (int f = 0; f < width; ++f) {
    for (int i = 0; i < hidden; ++i) {
      CHECK(at(ffn.gate_up, gate_row(f), i) == weight("gate_up", hidden, 2 * width, i, f));
      CHECK(at(ffn.gate_up, gate_row(f) + 32, i) == weight("gate_up", hidden, 2 * width, i, width + f));
      CHECK(at(ffn.down, i, f) == weight("down", width, hidden, f, i));
    }
  }
}

void check_vector(const float* floats, const Tiny& tiny, const std::string& name) {
  const std::vector<uint8_t>& source = tiny.bytes.at(name);
  for (size_t i = 0; i < source.size() / 2; ++i) {
    uint32_t bits;
    std::memcpy(&bits, floats + i, sizeof bits);
    CHECK_EQ(bits, static_cast<uint32_t>(half_bits(&source[2 * i])) << 16);
  }
}

void check_router(const LayerWeights& layer, const Tiny& tiny, const std::string& stem, const Config& config) {
  const int experts = config.num_local_experts, padded = round_up(experts, kPanel);
  const std::vector<uint8_t>& source = tiny.bytes.at(stem + "router.weight");
  for (int i = 0; i < config.hidden_size; ++i) {
    for (int e = 0; e < padded; ++e) {
      float wanted = 0;
      if (e < experts) std::memcpy(&wanted, &source[static_cast<size_t>(e * config.hidden_size + i) * 4], 4);
      CHECK_EQ(layer.router[i * padded + e], wanted);
    }
  }
  if (config.has_expert_bias()) check_vector(layer.expert_bias, tiny, stem + "expert_bias");
  for (int e = config.has_expert_bias() ? experts : 0; e < padded; ++e) CHECK_EQ(layer.expert_bias[e], 0.0f);
}

void check_layer(const LayerWeights& layer, const Tiny& tiny, const std::string& stem, const Config& config) {
  const int hidden = config.hidden_size, q_rows = config.q_width(), kv_rows = config.kv_width();
  const int k_begin = round_up(q_rows, kPanel), v_begin = k_begin + round_up(kv_rows, kPanel);
  check_vector(layer.input_norm, tiny, stem + "input_layernorm.weight");
  check_vector(layer.post_attention_norm, tiny, stem + "post_attention_layernorm.weight");
  CHECK_EQ(layer.qkv.outputs, v_begin + round_up(kv_rows, kPanel));
  check_linear(layer.qkv, 0, tiny, stem + "self_attn.q_proj", q_rows, hidden);
  check_linear(layer.qkv, k_begin, tiny, stem + "self_attn.k_proj", kv_rows, hidden);
  check_linear(layer.qkv, v_begin, tiny, stem + "self_attn.v_proj", kv_rows, hidden);
  check_linear(layer.o, 0, tiny, stem + "self_attn.o_proj", hidden, q_rows);
  const bool has_weights = config.qk_norm == QkNorm::head_weight || config.qk_norm == QkNorm::projection_weight;
  CHECK_EQ(layer.q_norm != nullptr, has_weights);
  if (has_weights) {
    check_vector(layer.q_norm, tiny, stem + "self_attn.q_norm.weight");
    check_vector(layer.k_norm, tiny, stem + "self_attn.k_norm.weight");
  }
  const std::string ffn = stem + "feed_forward.";
  CHECK_EQ(layer.experts.size(), static_cast<size_t>(config.num_local_experts));
  for (int e = 0; e < config.num_local_experts; ++e) {
    check_expert(layer.experts[e], tiny, ffn + "experts.", e, config);
  }
  if (!config.is_moe) {
    check_ffn(layer.shared, tiny, stem + "feed_forward", hidden, config.intermediate_size);
    return;
  }
  check_router(layer, tiny, ffn, config);
  CHECK_EQ(layer.shared.width, config.intermediate_size_mlp);
  if (config.intermediate_size_mlp > 0) {
    check_ffn(layer.shared, tiny, ffn + "shared_expert", hidden, config.intermediate_size_mlp);
  }
}

void check_model(const Model& model, const Tiny& tiny) {
  const Config& config = model.config;
  CHECK_EQ(model.config_json + "\n", tiny.config);
  CHECK_EQ(model.embedding.outputs, round_up(config.vocab_size, kPanel));
  check_linear(model.embedding, 0, tiny, "model.embed_tokens", config.vocab_size, config.hidden_size);
  check_linear(model.head, 0, tiny, config.tie_word_embeddings ? "model.embed_tokens" : "lm_head", config.vocab_size,
               config.hidden_size);
  check_vector(model.norm, tiny, "model.norm.weight");
  CHECK_EQ(model.layers.size(), static_cast<size_t>(config.num_hidden_layers));
  for (size_t i = 0; i < model.layers.size(); ++i) {
    check_layer(model.layers[i], tiny, "model.layers." + std::to_string(i) + ".", config);
  }
}

void write(const std::string& folder, const std::string& path) {
  write_engine_file(folder, path, nullptr, nullptr, nullptr);
}

void check_kept(const std::map<std::string, std::string>& changes) {
  const Tiny tiny(config_json(changes));
  const TempFolder folder, out;
  folder.put(tiny);
  write(folder.path(), out / "model.engine");
  const Model mapped = map_engine_file(out / "model.engine");
  check_model(mapped, tiny);
  check_model(repack_in_memory(folder.path()), tiny);
  CHECK(mapped.fingerprint == checkpoint_fingerprint(folder.path()));
  CHECK(mapped.origin == mapped.fingerprint);
  verify_engine_file(out / "model.engine");
  CHECK_EQ(mapped.file_bytes, tiny::read_file(out / "model.engine").size());
}

TEST(engine_file_keeps_every_weight_of_out_grouped_experts) { check_kept({}); }
TEST(engine_file_keeps_every_weight_of_in_grouped_experts) { check_kept(tiny::kInAxis); }
TEST(engine_file_keeps_every_weight_of_a_dense_model) { check_kept(tiny::kDense); }
TEST(engine_file_keeps_every_weight_of_a_model_like_olmoe) { check_kept(tiny::kOlmoe); }

// A large matrix is made in several pieces: here the embedding has more than one.
TEST(engine_file_keeps_every_weight_of_a_large_vocabulary) { check_kept({{"vocab_size", "40007"}}); }

TEST(engine_file_is_the_same_bytes_each_time_in_any_place_and_from_memory) {
  const TempFolder folder, other, out;
  folder.put(Tiny(config_json()));
  other.put(Tiny(config_json()));
  write(folder.path(), out / "a");
  write(other.path(), out / "b");
  const std::string a = tiny::read_file(out / "a");
  CHECK(a == tiny::read_file(out / "b"));
  const Model memory = repack_in_memory(folder.path());
  constexpr size_t kHash = offsetof(EngineHeader, hash), kBehind = sizeof(EngineHeader);  // only files have a hash
  CHECK(std::memcmp(memory.storage.get(), a.data(), kHash) == 0);
  CHECK(std::memcmp(static_cast<const char*>(memory.storage.get()) + kBehind, &a[kBehind], a.size() - kBehind) == 0);
}

TEST(engine_file_carries_the_origin_that_it_is_given) {
  const TempFolder folder, out;
  folder.put(Tiny(config_json()));
  Fingerprint origin{};
  origin[5] = 1;
  write_engine_file(folder.path(), out / "model.engine", &origin, nullptr, nullptr);
  const Model mapped = map_engine_file(out / "model.engine");
  CHECK(mapped.origin == origin);
  CHECK(mapped.fingerprint == checkpoint_fingerprint(folder.path()));
}

TEST(engine_file_with_any_changed_byte_is_found_by_its_hash) {
  const TempFolder folder, out;
  folder.put(Tiny(config_json({{"vocab_size", "200007"}})));  // several pieces are hashed
  write(folder.path(), out / "model.engine");
  const std::string file = tiny::read_file(out / "model.engine");
  CHECK(file.size() > 2 * kHashPiece);
  for (const size_t at : {size_t{40}, size_t{70}, size_t{100}, size_t{200}, file.size() / 2, file.size() - 1}) {
    std::string changed = file;
    changed[at] = static_cast<char>(changed[at] ^ 4);
    tiny::write_file(out / "model.engine", changed);
    CHECK_THROWS_SAYING(verify_engine_file(out / "model.engine"), ErrorCode::file, "damaged");
  }
  tiny::write_file(out / "model.engine", file);
  verify_engine_file(out / "model.engine");
}

TEST(engine_file_parts_of_killed_writers_go_and_those_of_living_ones_stay) {
  const TempFolder folder, out;
  folder.put(Tiny(config_json()));
  for (const char* name : {".model.engine.0123456789ab.part", ".model.engine.held.part", ".other.1.part"}) {
    tiny::write_file(out / name, "half");
  }
  const int held = open((out / ".model.engine.held.part").c_str(), O_RDONLY | O_CLOEXEC);
  CHECK_EQ(flock(held, LOCK_EX), 0);
  write(folder.path(), out / "model.engine");
  close(held);
  CHECK(!std::filesystem::exists(out / ".model.engine.0123456789ab.part"));
  CHECK(std::filesystem::exists(out / ".model.engine.held.part"));
  CHECK(std::filesystem::exists(out / ".other.1.part"));
}

TEST(engine_file_has_the_mode_that_the_umask_allows) {
  const TempFolder folder, out;
  folder.put(Tiny(config_json()));
  const mode_t before = umask(077);
  write(folder.path(), out / "model.engine");
  umask(before);
  struct stat status{};
  CHECK_EQ(stat((out / "model.engine").c_str(), &status), 0);
  CHECK_EQ(status.st_mode & 0777, 0600u);
}

TEST(engine_file_sections_are_aligned_to_64_bytes) {
  const EngineLayout layout(parse_config(config_json()), 192);
  for (const auto& [name, section] : layout.sections()) CHECK_EQ(section.offset % 64, 0u);
}

TEST(engine_file_is_whole_however_many_write_it_at_once) {
  const Tiny tiny(config_json());
  const TempFolder folder, out;
  folder.put(tiny);
  std::vector<std::thread> writers;
  for (int i = 0; i < 4; ++i) {
    writers.emplace_back([&] {
      for (int round = 0; round < 3; ++round) write(folder.path(), out / "model.engine");
    });
  }
  for (std::thread& writer : writers) writer.join();
  check_model(map_engine_file(out / "model.engine"), tiny);
  size_t files = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(out.path())) ++files;
  CHECK_EQ(files, 1u);  // no part is left behind
}

TEST(engine_file_that_is_stopped_leaves_nothing_behind) {
  const TempFolder folder, out;
  folder.put(Tiny(config_json()));
  CHECK_THROWS(write_engine_file(
                   folder.path(), out / "model.engine", nullptr, [](size_t, size_t, void*) { return false; }, nullptr),
               ErrorCode::usage);
  CHECK(std::filesystem::is_empty(out.path()));
}

TEST(engine_file_reports_progress_up_to_its_size) {
  const TempFolder folder, out;
  folder.put(Tiny(config_json()));
  std::pair<size_t, size_t> seen;
  const auto note = [](size_t done, size_t total, void* context) {
    *static_cast<std::pair<size_t, size_t>*>(context) = {done, total};
    return true;
  };
  write_engine_file(folder.path(), out / "model.engine", nullptr, note, &seen);
  CHECK_EQ(seen.first, seen.second);
  CHECK_EQ(seen.second, tiny::read_file(out / "model.engine").size());
}

TEST(engine_file_cannot_go_where_no_folder_is) {
  const TempFolder folder;
  folder.put(Tiny(config_json()));
  CHECK_THROWS_SAYING(write(folder.path(), folder / "missing/model.engine"), ErrorCode::file, "cannot be written");
}

TEST(engine_file_refuses_what_is_not_a_whole_file) {
  const TempFolder out;
  CHECK_THROWS_SAYING(map_engine_file(out / "missing"), ErrorCode::file, "does not exist");
  CHECK_THROWS_SAYING(map_engine_file(out.path()), ErrorCode::file, "is not a file");
  tiny::write_file(out / "empty", "");
  CHECK_THROWS_SAYING(map_engine_file(out / "empty"), ErrorCode::file, "is empty");
  CHECK_EQ(mkfifo((out / "pipe").c_str(), 0600), 0);
  CHECK_THROWS_SAYING(map_engine_file(out / "pipe"), ErrorCode::file, "is not a file");
  tiny::write_file(out / "other", std::string(1000, 'x'));
  CHECK_THROWS_SAYING(map_engine_file(out / "other"), ErrorCode::file, "is not an engine file");
}

TEST(engine_file_of_another_version_or_size_is_refused) {
  const std::string file = tiny::engine_file(Tiny(config_json()));
  CHECK_EQ(tiny::read_engine_file(file).layers.size(), 2u);
  std::string other = file;
  other[8] = 9;
  CHECK_THROWS_SAYING(tiny::read_engine_file(other), ErrorCode::file, "version 9");
  CHECK_THROWS_SAYING(tiny::read_engine_file(file + std::string(64, '\0')), ErrorCode::file, "bytes appended");
  for (size_t size = 0; size < file.size(); size += size < 4096 ? 17 : 4099) {
    CHECK_THROWS(tiny::read_engine_file(file.substr(0, size)), ErrorCode::file);
  }
}

TEST(engine_file_that_is_not_what_its_config_says_is_refused) {
  const std::string file = tiny::engine_file(Tiny(config_json()));
  const auto with = [&file](const std::string& from, const std::string& to) {
    std::string bytes = file;
    const size_t place = bytes.find(from);
    if (place == std::string::npos) throw std::runtime_error(from + " is not there");
    return tiny::read_engine_file(bytes.replace(place, from.size(), to));
  };
  CHECK_THROWS_SAYING(with("\"hidden_size\": 64", "\"hidden_size\": 96"), ErrorCode::file, "is not where");
  CHECK_THROWS_SAYING(with("\"vocab_size\": 50", "\"vocab_size\": 99"), ErrorCode::file, "is not where");
  CHECK_THROWS_SAYING(with("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1"), ErrorCode::file, "is not where");
  CHECK_THROWS_SAYING(with("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 9"), ErrorCode::file, "is not where");
  CHECK_THROWS_SAYING(with("\"hidden_size\": 64", "\"hidden_size\": 65"), ErrorCode::file, "multiple of 32");
  CHECK_THROWS_SAYING(with("\"head_dim\": 8", "\"head_dim\": 7"), ErrorCode::file, "damaged config");
  CHECK_THROWS_SAYING(with("\"sections\"", "\"sectionz\""), ErrorCode::file, "without config or sections");
}

TEST(engine_file_with_any_damage_to_its_header_is_refused_or_read) {
  const std::string file = tiny::engine_file(Tiny(config_json()));
  const size_t header_bytes = tiny::header_bytes(file);
  std::mt19937 random(1);
  int refused = 0;
  for (int round = 0; round < 600; ++round) {
    std::string bytes = file;
    for (auto edits = 1 + random() % 3; edits > 0; --edits) {
      bytes[random() % header_bytes] = static_cast<char>(random() % 2 == 0 ? random() : '0' + random() % 10);
    }
    try {
      tiny::read_engine_file(bytes);
    } catch (const Error& error) {
      CHECK_EQ(error.code(), ErrorCode::file);
      ++refused;
    }
  }
  CHECK(refused > 300);
}

}  // namespace
}  // namespace mobilemoe
