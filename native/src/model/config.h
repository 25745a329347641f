// The config of a model, as config.json has it: the C++ counterpart of mobilemoe.config.ModelConfig (spec 3.3, 3.5).
#pragma once

#include <cstdint>
#include <vector>

#include "model/matrix.h"

namespace mobilemoe {

enum class QkNorm : uint8_t { none, head, head_weight, projection_weight };
enum class RouterScore : uint8_t { sigmoid, softmax };

struct RopeScaling {
  double factor = 1;
  double original_max_position_embeddings = 0;
  double low_freq_factor = 1;
  double high_freq_factor = 1;
};

// Fields have their names in config.json. `parse_config` ensures that every size is within 1 .. 2^24, so that products
// of two fit into 64 bits.
struct Config {
  int vocab_size = 0;
  int hidden_size = 0;
  int num_hidden_layers = 0;
  int num_attention_heads = 0;
  int num_key_value_heads = 0;
  int head_dim = 0;
  int intermediate_size = 0;      // one routed expert, or the only FFN of a dense model
  int intermediate_size_mlp = 0;  // the shared expert; 0: none
  int num_local_experts = 0;      // 0: dense
  int num_experts_per_tok = 0;
  int max_position_embeddings = 0;
  bool is_moe = true;
  bool norm_topk_prob = true;
  bool tie_word_embeddings = true;
  bool has_rope_scaling = false;
  bool is_quantized = false;     // false: BF16, which the engine does not run
  Axis expert_axis = Axis::out;  // the axis along which the INT4 groups of the routed experts lie
  RouterScore router_score = RouterScore::sigmoid;
  QkNorm qk_norm = QkNorm::head;
  double routed_scaling_factor = 2.5;
  double attention_scale = 0;  // filled in: 1 / sqrt(head_dim) if config.json has none
  double rms_norm_eps = 1e-5;
  double rope_theta = 500000;
  RopeScaling rope_scaling;
  int sliding_window = 0;   // 0: config.json has none
  std::vector<int> window;  // by layer: keys that a query sees, itself included; 0: all
  std::vector<int> eos_token_id;

  bool has_expert_bias() const { return is_moe && router_score == RouterScore::sigmoid; }
  int q_width() const { return num_attention_heads * head_dim; }
  int kv_width() const { return num_key_value_heads * head_dim; }
};

}  // namespace mobilemoe
