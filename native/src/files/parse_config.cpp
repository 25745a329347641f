#include "files/parse_config.h"

#include <cmath>
#include <string>

#include "files/config_fields.h"
#include "files/config_keys.h"
#include "files/config_rope.h"

namespace mobilemoe {
namespace {

using config_fields::fail;
using config_fields::Fields;
using config_fields::kLargest;
using config_fields::show;

constexpr std::string_view kFull = "full_attention", kSliding = "sliding_attention";

void check_family(const Fields& fields) {
  fields.fixed("model_type", "mobilemoe");
  fields.fixed("hidden_act", "silu");
  fields.fixed("interleave_moe_layer_step", 1);
  fields.fixed("attn_temperature_tuning", 0);
  fields.fixed("attention_bias", 0);
  for (const Json& rope : fields.list("no_rope_layers")) {
    if (!Fields::is_number(rope, 1)) fail("no_rope_layers is not all 1, but every layer must have RoPE");
  }
}

void read_sizes(const Fields& fields, Config& config) {
  fields.required_size("vocab_size", config.vocab_size);
  fields.required_size("hidden_size", config.hidden_size);
  fields.required_size("num_hidden_layers", config.num_hidden_layers);
  fields.required_size("num_attention_heads", config.num_attention_heads);
  fields.required_size("num_key_value_heads", config.num_key_value_heads);
  fields.required_size("head_dim", config.head_dim);
  fields.required_size("intermediate_size", config.intermediate_size);
  config.max_position_embeddings = 8192;
  fields.size("max_position_embeddings", 1, config.max_position_embeddings);
  if (config.num_attention_heads % config.num_key_value_heads != 0) {
    fail("num_attention_heads is " + std::to_string(config.num_attention_heads) +
         ", not a multiple of num_key_value_heads " + std::to_string(config.num_key_value_heads));
  }
  if (config.head_dim % 2 != 0) {
    fail("head_dim is " + std::to_string(config.head_dim) + ", but RoPE needs an even number");
  }
  if (static_cast<int64_t>(config.num_attention_heads) * config.head_dim > kLargest) {
    fail("num_attention_heads is " + std::to_string(config.num_attention_heads) + " and head_dim " +
         std::to_string(config.head_dim) + ", but their product must not be larger than " + std::to_string(kLargest));
  }
}

void read_experts(const Fields& fields, Config& config) {
  config.is_moe = fields.word("ffn_type", {"moe", "dense"}, 0) == 0;
  config.router_score =
      fields.word("router_score", {"sigmoid", "softmax"}, 0) == 0 ? RouterScore::sigmoid : RouterScore::softmax;
  fields.flag("norm_topk_prob", config.norm_topk_prob);
  fields.number("routed_scaling_factor", config.routed_scaling_factor);
  fields.size("intermediate_size_mlp", 0, config.intermediate_size_mlp);
  fields.size("num_local_experts", 0, config.num_local_experts);
  fields.size("num_experts_per_tok", 0, config.num_experts_per_tok);
  if (!config.is_moe) {
    if (config.num_local_experts != 0 || config.num_experts_per_tok != 0 || config.intermediate_size_mlp != 0) {
      fail("ffn_type is dense, so num_local_experts, num_experts_per_tok and intermediate_size_mlp must be 0");
    }
    return;
  }
  fields.positive("routed_scaling_factor", config.routed_scaling_factor);
  if (config.num_local_experts == 0) fail("num_local_experts is 0, but must be positive");
  if (config.num_experts_per_tok == 0) fail("num_experts_per_tok is 0, but must be positive");
  if (config.num_experts_per_tok > config.num_local_experts) {
    fail("num_experts_per_tok is " + std::to_string(config.num_experts_per_tok) + ", but there are only " +
         std::to_string(config.num_local_experts) + " experts");
  }
}

void read_attention(const Fields& fields, Config& config) {
  bool has_norm = true;
  fields.flag("use_qk_norm", has_norm);
  config.qk_norm = static_cast<QkNorm>(
      fields.word("qk_norm", {"none", "head", "head_weight", "projection_weight"}, has_norm ? 1 : 0));
  config.attention_scale = 1 / std::sqrt(config.head_dim);
  if (fields.get("attention_scale") != nullptr) fields.number("attention_scale", config.attention_scale);

  int& sliding_window = config.sliding_window;
  if (fields.get("sliding_window") != nullptr) fields.size("sliding_window", 1, sliding_window);
  const Json::Items& types = fields.list("layer_types");
  const auto layers = static_cast<size_t>(config.num_hidden_layers);
  if (!types.empty() && types.size() != layers) {
    fail("layer_types has " + std::to_string(types.size()) + " entries, but num_hidden_layers is " +
         std::to_string(layers));
  }
  const Json* use_window = fields.get("use_sliding_window");
  const bool unused = use_window != nullptr && Fields::is_number(*use_window, 0);
  if (sliding_window != 0 && types.empty() && !unused && sliding_window < config.max_position_embeddings) {
    fail("sliding_window is " + std::to_string(sliding_window) +
         ", but layer_types does not say which layers have that window");
  }
  config.window.assign(layers, 0);
  for (size_t layer = 0; layer < types.size(); ++layer) {
    const std::string* kind = types[layer].text();
    if (kind == nullptr || (*kind != kFull && *kind != kSliding)) {
      fail("layer_types holds " + show(types[layer]) + ", but only full_attention and sliding_attention are supported");
    }
    if (*kind == kFull) continue;
    if (sliding_window == 0) fail("layer_types holds sliding_attention, but sliding_window is missing");
    config.window[layer] = sliding_window;
  }
}

void read_quantization(const Fields& fields, Config& config) {
  const Json* object = fields.get("quantization");
  if (object == nullptr) return;
  const Fields quantization(*object, "quantization.");
  for (const char* foreign : {"bits", "mode", "quant_method"}) {  // fields of other tools' quantization
    if (object->find(foreign) != nullptr) quantization.refuse(foreign, ", but only MobileMoE's own is supported");
  }
  quantization.fixed("format", "mobilemoe-int4-g32");
  quantization.fixed("group_size", kGroup);
  quantization.fixed("embedding_group_size", kGroup);
  quantization.fixed("qmin", -8);
  quantization.fixed("qmax", 7);
  quantization.fixed("symmetric", 1);
  quantization.fixed("scale_dtype", "float16");
  quantization.fixed("linear_group_axis", "in (last dim of [out, in])");
  quantization.fixed("packed", 1);
  const size_t axis = quantization.word(
      "expert_group_axis", {"out (last dim of [E, in, out])", "in (last dim of [E, out, in])", "out", "in"}, 0);
  config.expert_axis = axis % 2 == 0 ? Axis::out : Axis::in;
  config.is_quantized = true;
}

void read_tokens(const Fields& fields, Config& config) {
  // An id beyond the vocabulary is accepted: a small model may have the special ids of a larger one, which never occur.
  const auto token = [](const Json& value) {
    const int64_t* id = value.integer();
    return id != nullptr && *id >= 0 && *id <= INT32_MAX ? static_cast<int>(*id) : -1;
  };
  for (const char* name : {"bos_token_id", "eot_token_id", "header_start_token_id", "header_end_token_id"}) {
    const Json* value = fields.get(name);
    if (value != nullptr && token(*value) < 0) fields.refuse(name, ", not a token id");
  }
  const Json* eos = fields.get("eos_token_id");
  if (eos != nullptr && eos->integer() != nullptr) {
    if (token(*eos) < 0) fields.refuse("eos_token_id", ", not a token id");
    config.eos_token_id.push_back(token(*eos));
    return;
  }
  for (const Json& value : fields.list("eos_token_id")) {
    if (token(value) < 0) fail("eos_token_id holds " + show(value) + ", not a token id");
    config.eos_token_id.push_back(token(value));
  }
}

// Two names for the type of the weights in a BF16 file.
void check_types(const Fields& fields) {
  const Json *ours = fields.get("dtype"), *older = fields.get("torch_dtype");
  if (ours != nullptr && older != nullptr && ours->source != older->source) {
    fail("dtype is " + show(*ours) + ", but torch_dtype is " + show(*older) + ": they must say the same");
  }
}

}  // namespace

Config parse_config(std::string_view text) {
  const Json object = parse_json(text, "the config", ErrorCode::config);
  const Fields fields(object, "");
  Config config;
  check_family(fields);
  read_sizes(fields, config);
  read_experts(fields, config);
  read_attention(fields, config);
  fields.positive("rms_norm_eps", config.rms_norm_eps);
  read_rope(object, config);
  fields.flag("tie_word_embeddings", config.tie_word_embeddings);
  read_quantization(fields, config);
  read_tokens(fields, config);
  check_types(fields);
  const std::string fault = foreign_fault(object, config);
  if (!fault.empty()) fail(fault);
  return config;
}

}  // namespace mobilemoe
