#include "files/engine_layout.h"

#include "error.h"

namespace mobilemoe {
namespace {

constexpr size_t kMaxFileBytes = size_t{1} << 62;

size_t float_bytes(int count) { return count * sizeof(float); }

}  // namespace

std::string layer_stem(int layer) { return "layers." + std::to_string(layer) + "."; }

int qkv_rows(const Config& config) {
  return round_up(config.q_width(), kPanel) + 2 * round_up(config.kv_width(), kPanel);
}

size_t ffn_bytes(int hidden, int width) {
  return align_section(Matrix::bytes(2 * width, hidden)) + align_section(Matrix::bytes(hidden, width));
}

size_t expert_bytes(const Config& config) {
  return align(ffn_bytes(config.hidden_size, config.intermediate_size), kEnginePage);
}

Ffn shape_of_ffn(int hidden, int width, Axis axis) {
  return {{nullptr, 2 * width, hidden, axis}, {nullptr, hidden, width, axis}, width};
}

Ffn place_ffn(const uint8_t* at, Ffn shape) {
  shape.gate_up.data = at;
  shape.down.data = at + align_section(shape.gate_up.bytes());
  return shape;
}

EngineLayout::EngineLayout(const Config& config, size_t start) : end_(start) {
  const size_t table = Matrix::bytes(round_up(config.vocab_size, kPanel), config.hidden_size);
  add("embedding", table);
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) add_layer(config, layer_stem(layer));
  add("norm", float_bytes(config.hidden_size));
  if (!config.tie_word_embeddings) add("head", table);
  end_ = shared_end_ = align(end_, kEnginePage);
  if (!config.is_moe) return;
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    add(layer_stem(layer) + "experts", expert_bytes(config), config.num_local_experts, kEnginePage);
  }
}

void EngineLayout::add_layer(const Config& config, const std::string& stem) {
  const int hidden = config.hidden_size;
  add(stem + "input_norm", float_bytes(hidden));
  add(stem + "qkv", Matrix::bytes(qkv_rows(config), hidden));
  if (config.qk_norm == QkNorm::head_weight || config.qk_norm == QkNorm::projection_weight) {
    const bool per_head = config.qk_norm == QkNorm::head_weight;
    add(stem + "q_norm", float_bytes(per_head ? config.head_dim : config.q_width()));
    add(stem + "k_norm", float_bytes(per_head ? config.head_dim : config.kv_width()));
  }
  add(stem + "o", Matrix::bytes(hidden, config.q_width()));
  add(stem + "post_attention_norm", float_bytes(hidden));
  if (!config.is_moe) {
    add(stem + "shared", ffn_bytes(hidden, config.intermediate_size));
    return;
  }
  const int experts = round_up(config.num_local_experts, kPanel);
  add(stem + "router", float_bytes(hidden) * experts);
  add(stem + "expert_bias", float_bytes(experts));
  if (config.intermediate_size_mlp > 0) add(stem + "shared", ffn_bytes(hidden, config.intermediate_size_mlp));
}

// No single part has 2^52 bytes or more, since no size in a config is beyond 2^24: only the product can be too large.
void EngineLayout::add(const std::string& name, size_t bytes, size_t count, size_t unit) {
  if (bytes > (kMaxFileBytes - end_) / count) {
    throw Error(ErrorCode::config, "the weights would take more than 2^62 bytes");
  }
  sections_[name] = {end_, bytes * count};
  end_ = align(end_ + bytes * count, unit);
}

}  // namespace mobilemoe
