#include "files/expected_tensors.h"

#include <utility>
#include <vector>

#include "error.h"

namespace mobilemoe {
namespace {

class Table {
 public:
  explicit Table(const Config& config) : config_(config) {}

  Tensors build() {
    add_matrix("model.embed_tokens", config_.vocab_size, config_.hidden_size);
    for (int layer = 0; layer < config_.num_hidden_layers; ++layer) {
      const std::string stem = "model.layers." + std::to_string(layer);
      add_attention(stem);
      add_feed_forward(stem);
    }
    add_vector("model.norm.weight", config_.hidden_size);
    if (!config_.tie_word_embeddings) add_matrix("lm_head", config_.vocab_size, config_.hidden_size);
    return std::move(table_);
  }

 private:
  void add(const std::string& name, const char* dtype, std::vector<int64_t> shape) {
    Tensor& tensor = table_[name];
    tensor.dtype = dtype;
    tensor.shape = std::move(shape);
  }

  void add_vector(const std::string& name, int size) { add(name, "BF16", {size}); }

  void add_matrix(const std::string& stem, int outputs, int inputs) {
    add(stem + ".qweight", "U8", {outputs, inputs / 2});
    add(stem + ".weight_scale", "F16", {outputs, inputs / kGroup});
  }

  void add_experts(const std::string& stem, int inputs, int outputs) {
    const bool is_out = config_.expert_axis == Axis::out;
    const int rows = is_out ? inputs : outputs, columns = is_out ? outputs : inputs;
    add(stem + "_qweight", "U8", {config_.num_local_experts, rows, columns / 2});
    add(stem + "_scale", "F16", {config_.num_local_experts, rows, columns / kGroup});
  }

  void add_swiglu(const std::string& stem, int width) {
    add_matrix(stem + ".gate_proj", width, config_.hidden_size);
    add_matrix(stem + ".up_proj", width, config_.hidden_size);
    add_matrix(stem + ".down_proj", config_.hidden_size, width);
  }

  void add_attention(const std::string& stem) {
    const int hidden = config_.hidden_size, q_width = config_.q_width(), kv_width = config_.kv_width();
    add_vector(stem + ".input_layernorm.weight", hidden);
    add_matrix(stem + ".self_attn.q_proj", q_width, hidden);
    add_matrix(stem + ".self_attn.k_proj", kv_width, hidden);
    add_matrix(stem + ".self_attn.v_proj", kv_width, hidden);
    add_matrix(stem + ".self_attn.o_proj", hidden, q_width);
    if (config_.qk_norm == QkNorm::head_weight || config_.qk_norm == QkNorm::projection_weight) {
      const bool per_head = config_.qk_norm == QkNorm::head_weight;
      add_vector(stem + ".self_attn.q_norm.weight", per_head ? config_.head_dim : q_width);
      add_vector(stem + ".self_attn.k_norm.weight", per_head ? config_.head_dim : kv_width);
    }
  }

  void add_feed_forward(const std::string& stem) {
    add_vector(stem + ".post_attention_layernorm.weight", config_.hidden_size);
    const std::string ffn = stem + ".feed_forward";
    if (!config_.is_moe) {
      add_swiglu(ffn, config_.intermediate_size);
      return;
    }
    add(ffn + ".router.weight", "F32", {config_.num_local_experts, config_.hidden_size});
    if (config_.has_expert_bias()) add_vector(ffn + ".expert_bias", config_.num_local_experts);
    add_experts(ffn + ".experts.gate_up", config_.hidden_size, 2 * config_.intermediate_size);
    add_experts(ffn + ".experts.down", config_.intermediate_size, config_.hidden_size);
    if (config_.intermediate_size_mlp > 0) add_swiglu(ffn + ".shared_expert", config_.intermediate_size_mlp);
  }

  const Config& config_;
  Tensors table_;
};

}  // namespace

Tensors expected_tensors(const Config& config) { return Table(config).build(); }

void check_int4(const Config& config, const std::string& place) {
  if (!config.is_quantized) {
    throw Error(ErrorCode::config,
                place + " holds BF16 weights, but the engine runs INT4: quantize the model first (mobilemoe quantize)");
  }
  const std::pair<const char*, int> grouped[] = {{"hidden_size", config.hidden_size},
                                                 {"num_attention_heads x head_dim", config.q_width()},
                                                 {"intermediate_size", config.intermediate_size},
                                                 {"intermediate_size_mlp", config.intermediate_size_mlp}};
  for (const auto& [name, size] : grouped) {
    if (size % kGroup == 0) continue;
    throw Error(ErrorCode::config,
                place + ": " + name + " is " + std::to_string(size) + ", but the engine's INT4 needs a multiple of 32");
  }
}

}  // namespace mobilemoe
