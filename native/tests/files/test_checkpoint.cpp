// Everything that a checkpoint says about itself is checked before it is used.
#include <chrono>
#include <cstring>

#include "check.h"
#include "files/repack.h"
#include "files/sha256.h"
#include "tiny_checkpoint.h"

namespace mobilemoe {
namespace {

using tiny::config_json;
using tiny::TempFolder;
using tiny::Tiny;

Tensors read(const std::string& bytes) {
  return read_safetensors(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), "it");
}

// A container with this table and payload.
std::string container(const std::string& table, size_t payload) {
  std::string out(8, '\0');
  for (size_t i = 0; i < 8; ++i) out[i] = static_cast<char>(table.size() >> (8 * i) & 0xFF);
  return out + table + std::string(payload, 'p');
}

std::string entry(const char* dtype, const char* shape, const char* offsets) {
  return std::string("{\"dtype\":\"") + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
}

TEST(safetensors_gives_views_of_its_tensors) {
  const std::string table =
      "{\"a\":" + entry("F32", "[1,2]", "[2,10]") + ",\"b\":" + entry("BF16", "[]", "[0,2]") + "}";
  const std::string bytes = container(table, 10);
  const Tensors tensors = read(bytes);
  CHECK_EQ(tensors.at("a").dtype, "F32");
  CHECK(tensors.at("a").shape == (std::vector<int64_t>{1, 2}));
  CHECK_EQ(tensors.at("a").bytes, 8u);
  CHECK_EQ(static_cast<const void*>(tensors.at("b").data), static_cast<const void*>(bytes.data() + 8 + table.size()));
}

TEST(safetensors_refuses_every_false_claim) {
  const struct {
    std::string bytes;
    const char* says;
  } faults[] = {
      {"1234567", "7 bytes, too short"},
      {std::string(8, '\xFF'), "claims a header of 18446744073709551615 bytes"},
      {std::string("\x09\0\0\0\0\0\0\0{}", 10), "claims a header of 9 bytes"},
      {container(" {}", 0), "does not begin with {"},
      {container("{", 0), "is not valid JSON"},
      {container("{}", 1), "its tensors end at 10"},
      {container("{\"a\":1}", 0), "is not described by"},
      {container("{\"a\":" + entry("U8", "[4]", "[0,4]") + ",\"b\":" + entry("U8", "[4]", "[2,6]") + "}", 6),
       "overlaps"},
      {container("{\"a\":" + entry("U8", "[4]", "[0,4]") + ",\"b\":" + entry("U8", "[4]", "[5,9]") + "}", 9), "hole"},
      {container("{\"a\":" + entry("U8", "[4]", "[0,4]") + "}", 3), "ends beyond the file"},
      {container("{\"a\":" + entry("U8", "[4]", "[0,3]") + "}", 3), "do not fit its shape"},
      {container("{\"a\":" + entry("U8", "[4]", "[4,0]") + "}", 4), "do not fit its shape"},
      {container("{\"a\":" + entry("U8", "[-1]", "[0,1]") + "}", 1), "not a list of whole numbers"},
      {container("{\"a\":" + entry("U8", "4", "[0,4]") + "}", 4), "not a list of whole numbers"},
      {container("{\"a\":" + entry("U8", "[4]", "[0,4,5]") + "}", 4), "not two whole numbers"},
      {container("{\"a\":" + entry("F12", "[4]", "[0,4]") + "}", 4), "unknown dtype"},
      {container("{\"a\":" + entry("F64", "[4294967296,4294967296]", "[0,0]") + "}", 0), "impossible shape"},
      {container("{\"a\":" + entry("F64", "[0,4294967296,4294967296]", "[0,0]") + "}", 0), "impossible shape"},
  };
  for (const auto& fault : faults) CHECK_THROWS_SAYING(read(fault.bytes), ErrorCode::file, fault.says);
}

// Opens the checkpoint from a folder after `change` has changed its tensors.
template <class Change>
void open_changed(const Change& change) {
  Tiny tiny(config_json());
  change(tiny.tensors);
  const TempFolder folder;
  folder.put(tiny);
  open_checkpoint(folder.path());
}

TEST(checkpoint_names_missing_and_unknown_tensors) {
  CHECK_THROWS_SAYING(open_changed([](Tensors& tensors) { tensors.erase("model.norm.weight"); }), ErrorCode::file,
                      "missing tensors: \"model.norm.weight\"; unknown tensors: none");
  CHECK_THROWS_SAYING(open_changed([](Tensors& tensors) { tensors["extra"] = tensors["model.norm.weight"]; }),
                      ErrorCode::file, "missing tensors: none; unknown tensors: \"extra\"");
  CHECK_THROWS_SAYING(open_changed([](Tensors& tensors) {
                        for (const char* name : {"a", "b", "c", "d", "e", "f"}) tensors[name] = {"U8", {0}, nullptr, 0};
                      }),
                      ErrorCode::file, "\"d\" and 2 more");
}

TEST(checkpoint_names_a_tensor_of_the_wrong_type_or_shape) {
  CHECK_THROWS_SAYING(open_changed([](Tensors& tensors) { tensors["model.norm.weight"].dtype = "F16"; }),
                      ErrorCode::file, "\"model.norm.weight\" is F16 [64], but config.json asks for BF16 [64]");
  CHECK_THROWS_SAYING(open_changed([](Tensors& tensors) { tensors["model.norm.weight"].shape = {8, 8}; }),
                      ErrorCode::file, "\"model.norm.weight\" is BF16 [8, 8]");
}

void open_with_config(const std::map<std::string, std::string>& changes) {
  const TempFolder folder;
  folder.put(Tiny(config_json()));
  tiny::write_file(folder / "config.json", config_json(changes));
  open_checkpoint(folder.path());
}

TEST(checkpoint_that_the_engine_cannot_run_says_why) {
  CHECK_THROWS_SAYING(open_with_config({{"quantization", ""}}), ErrorCode::config,
                      "holds BF16 weights, but the engine runs INT4");
  CHECK_THROWS_SAYING(open_with_config({{"intermediate_size", "48"}}), ErrorCode::config,
                      "intermediate_size is 48, but the engine's INT4 needs a multiple of 32");
  CHECK_THROWS_SAYING(open_with_config({{"head_dim", "7"}}), ErrorCode::config, "config.json: head_dim is 7");
  CHECK_THROWS_SAYING(open_with_config({{"num_hidden_layers", "16777216"}}), ErrorCode::file, "16777216 layers");
  CHECK_THROWS_SAYING(open_with_config({{"num_local_experts", "16777216"}}), ErrorCode::file, "16777216");
  CHECK_THROWS_SAYING(open_with_config({{"pad", "\"" + std::string(1 << 20, 'x') + "\""}}), ErrorCode::file,
                      "may be no more than 1048576");
}

TEST(checkpoint_needs_a_folder_with_config_and_weights) {
  const TempFolder folder;
  CHECK_THROWS_SAYING(open_checkpoint(folder / "missing"), ErrorCode::file, "is not a folder");
  CHECK_THROWS_SAYING(open_checkpoint(folder.path()), ErrorCode::file, "config.json does not exist");
  tiny::write_file(folder / "config.json", config_json());
  CHECK_THROWS_SAYING(open_checkpoint(folder.path()), ErrorCode::file, "model.safetensors does not exist");
}

// The tensors in two files under an index.
void put_shards(const TempFolder& folder, const Tiny& tiny) {
  Tensors shards[2];
  std::string weight_map;
  size_t at = 0;
  for (const auto& entry : tiny.tensors) {
    const size_t shard = at++ % 2;
    shards[shard].insert(entry);
    weight_map +=
        (weight_map.empty() ? "\"" : ",\"") + entry.first + "\":\"" + std::to_string(shard) + ".safetensors\"";
  }
  tiny::write_file(folder / "config.json", tiny.config);
  tiny::write_file(folder / "0.safetensors", tiny::container(shards[0]));
  tiny::write_file(folder / "1.safetensors", tiny::container(shards[1]));
  tiny::write_file(folder / "model.safetensors.index.json", "{\"weight_map\":{" + weight_map + "}}");
}

TEST(checkpoint_in_several_files_is_the_same_model) {
  const Tiny tiny(config_json());
  const TempFolder whole, sharded;
  whole.put(tiny);
  put_shards(sharded, tiny);
  const Model a = repack_in_memory(whole.path()), b = repack_in_memory(sharded.path());
  CHECK_EQ(a.embedding.bytes(), b.embedding.bytes());
  CHECK(std::memcmp(a.embedding.data, b.embedding.data, a.embedding.bytes()) == 0);
  const Ffn &expert_a = a.layers[1].experts[2], &expert_b = b.layers[1].experts[2];
  CHECK(std::memcmp(expert_a.down.data, expert_b.down.data, expert_a.down.bytes()) == 0);
}

TEST(checkpoint_index_must_fit_its_files_and_stay_in_its_folder) {
  const Tiny tiny(config_json());
  const TempFolder folder;
  put_shards(folder, tiny);
  std::string index = tiny::read_file(folder / "model.safetensors.index.json");
  for (const char* shard : {"\"../0.safetensors\"", "\"/0.safetensors\"", "\"0.bin\"", "7", "null"}) {
    tiny::write_file(folder / "model.safetensors.index.json", "{\"weight_map\":{\"a\":" + std::string(shard) + "}}");
    CHECK_THROWS_SAYING(open_checkpoint(folder.path()), ErrorCode::file, "something else than a safetensors file");
  }
  tiny::write_file(folder / "model.safetensors.index.json", "{\"weight_map\":[]}");
  CHECK_THROWS_SAYING(open_checkpoint(folder.path()), ErrorCode::file, "holds no weight_map");
  index.replace(index.find("0.safetensors"), 1, "1");
  tiny::write_file(folder / "model.safetensors.index.json", index);
  CHECK_THROWS_SAYING(open_checkpoint(folder.path()), ErrorCode::file, "holds other tensors than the index");
}

TEST(checkpoint_fingerprint_is_of_the_contents_wherever_they_lie) {
  const Tiny tiny(config_json());
  const TempFolder folder, shards;
  folder.put(tiny);
  put_shards(shards, tiny);
  const Fingerprint first = checkpoint_fingerprint(folder.path());
  CHECK(checkpoint_fingerprint(shards.path()) == first);
  const std::string weights = folder / "model.safetensors", bytes = tiny::read_file(weights);
  const auto time = std::filesystem::last_write_time(weights);
  std::filesystem::last_write_time(weights, time + std::chrono::seconds(1));
  CHECK(checkpoint_fingerprint(folder.path()) == first);
  for (const size_t from_end : {size_t{1}, size_t{999}}) {  // the same size and time, other weights
    std::string changed = bytes;
    changed[changed.size() - from_end] ^= 1;
    tiny::write_file(weights, changed);
    std::filesystem::last_write_time(weights, time);
    CHECK(checkpoint_fingerprint(folder.path()) != first);
  }
  tiny::write_file(weights, bytes);
  CHECK(checkpoint_fingerprint(folder.path()) == first);
  tiny::write_file(folder / "config.json", config_json({{"rope_theta", "10000"}}));
  CHECK(checkpoint_fingerprint(folder.path()) != first);
}

TEST(checkpoint_with_any_damage_is_refused_or_read) {
  const Tiny tiny(config_json());
  const TempFolder folder;
  const std::string weights = tiny.weights();
  std::mt19937 random(2);
  int refused = 0;
  for (int round = 0; round < 400; ++round) {
    std::string config = tiny.config, bytes = weights;
    if (round % 4 == 0) bytes.resize(random() % bytes.size());
    if (round % 4 == 1) config[random() % config.size()] = static_cast<char>('0' + random() % 10);
    if (round % 4 >= 2) bytes[random() % 4096] = static_cast<char>(round % 4 == 2 ? random() : '0' + random() % 10);
    tiny::write_file(folder / "config.json", config);
    tiny::write_file(folder / "model.safetensors", bytes);
    try {
      repack_in_memory(folder.path());
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::file || error.code() == ErrorCode::config);
      ++refused;
    }
  }
  CHECK(refused > 200);
}

std::string hex_digest(const std::string& text, size_t step) {
  Sha256 hash;
  for (size_t at = 0; at < text.size(); at += step) hash.update(text.data() + at, std::min(step, text.size() - at));
  std::string out;
  for (const uint8_t byte : hash.finish()) {
    out += "0123456789abcdef"[byte >> 4];
    out += "0123456789abcdef"[byte & 15];
  }
  return out;
}

TEST(sha256_gives_the_published_digests) {
  CHECK_EQ(hex_digest("", 1), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK_EQ(hex_digest("abc", 3), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  const std::string two_blocks = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
  for (const size_t step : {1, 7, 56}) {
    CHECK_EQ(hex_digest(two_blocks, step), "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  }
  for (const size_t step : {999, 1000000}) {
    CHECK_EQ(hex_digest(std::string(1'000'000, 'a'), step),
             "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  }
}

}  // namespace
}  // namespace mobilemoe
