#include "files/config_keys.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string_view>

#include "files/config_fields.h"

namespace mobilemoe {
namespace {

using config_fields::show;

struct Off {
  std::string_view allowed;  // the value that is allowed besides null, {} and lists of that value
  std::string_view keys;
};
struct Same {
  std::string_view name;
  double (*own)(const Config&);
  std::string_view keys;
};

// clang-format off
constexpr Off kOff[] = {
    {"", R"(
    quantization_config compression_config vision_config audio_config text_config encoder_config
    activation_sparsity_pattern mlp_only_layers dense_layers nope_layers layers_block_type block_types
    hybrid_override_pattern attn_type_list linear_attn_config ssm_cfg mamba_d_state full_attn_idxs pruned_heads
    dual_chunk_attention_config mlp_multipliers ssm_multipliers
    attn_config ffn_config moe_config mamba_config ssm_config attn_layer_indices memory_layers
    )"},
    {"0", R"(
    mlp_bias ffn_bias use_bias bias qkv_bias add_qkv_bias attention_qkv_bias attention_out_bias
    attention_output_bias o_bias lm_head_bias add_bias_linear router_bias expert_bias moe_bias qk_layernorm
    qk_layer_norm use_qkv_norm attn_qk_norm clip_qkv final_logit_softcapping attn_logit_softcapping
    attention_logit_softcapping router_logit_softcapping final_logit_softcap attn_logit_softcap logit_softcap
    output_logit_soft_cap attention_logit_cap scale_embedding scale_embeddings normalize_embedding
    normalize_embeddings use_embedding_norm use_mup mup_enabled attn_output_gate attention_output_gate
    use_attention_gate gated_attention elementwise_attn_output_gate headwise_attn_output_gate
    use_attention_sinks use_attention_sink attention_sinks attention_sink use_sinks attention_sink_size
    num_attention_sinks add_swa_attention_sink_bias add_full_attention_sink_bias swiglu_limit moe_swiglu_limit
    scale_depth first_k_dense_replace num_dense_layers n_dense_layers first_dense_layers moe_layer_start_index
    num_zero_experts zero_expert_num num_null_experts moe_latent_size use_shared_expert_gate shared_expert_gate
    moe_apply_router_weight_on_input apply_router_weight_on_input q_lora_rank kv_lora_rank o_lora_rank
    qk_rope_head_dim qk_nope_head_dim use_mla index_topk index_n_heads index_head_dim norm_after use_post_norm
    post_norm use_sandwich_norm sandwich_norm use_post_attention_norm parallel_residual use_parallel_residual
    parallel_attn apply_residual_connection_post_layernorm rms_norm_add_unit_offset norm_plus_one
    add_unit_offset zero_centered_norm layernorm_zero_centered alibi use_alibi use_mrope use_logn_attn
    use_dynamic_ntk scale_attn_by_inverse_layer_idx num_kv_shared_layers hidden_size_per_layer_input laurel_rank
    mamba_expand conv_L_cache is_encoder_decoder add_cross_attention use_bidirectional_attention bidirectional
    block_sparse sparse_attention use_sparse_attention value_residual use_value_residual layer_scale layerscale
    use_layer_scale layer_scale_init_value layerscale_value embedding_norm embed_norm use_embed_norm v_norm
    use_v_norm o_norm use_qk_l2norm use_qk_l2_norm qk_l2_norm attention_gate attn_gate gated_attn use_attn_gate
    use_output_gate cross_layer_sharing kv_sharing attention_k_eq_v use_double_wide_mlp global_head_dim
    num_global_key_value_heads apply_layernorm_1p norm_before_gate xpos use_xpos cope use_cope use_grouped_topk
    mamba_d_conv mamba_d_ssm mamba_n_heads mamba_num_heads mamba_head_dim ssm_state_size conv_kernel conv_bias
    short_conv linear_conv_kernel_dim linear_num_key_heads linear_num_value_heads
    )"},
    {"0 1", R"(
    n_group topk_group n_groups num_expert_group num_limited_groups altup_num_inputs hc_mult cla_share_factor
    attn_layer_period
    )"},
    {"1", R"(
    partial_rotary_factor rotary_pct rotary_percent rope_pct rope_percentage rope_ratio rope_factor
    rope_scaling_factor logit_scale logits_scaling logit_multiplier logits_multiplier lm_head_multiplier
    embedding_multiplier embedding_scale embed_scale scale_emb residual_multiplier residual_scale
    attention_in_multiplier attention_out_multiplier attention_output_multiplier attention_value_scale
    key_multiplier output_multiplier_scale embedding_multiplier_scale mup_width_multiplier
    mup_embeddings_multiplier mup_attn_multiplier swiglu_alpha decoder_sparse_step moe_layer_freq
    moe_layer_frequency moe_every_n_layers moe_layer_interval expert_interval rope_interleaved rope_interleave
    rotary_interleaved is_rope_interleaved use_rope use_rotary use_rotary_embeddings use_rms_norm rms_norm
    scale_attn_weights is_causal do_layer_norm_before final_layernorm use_final_norm
    output_scale resid_scale hidden_states_scale emb_scale embeddings_scale pre_norm use_pre_norm final_norm
    skip_connections
    )"},
    {"silu swish", R"(
    hidden_activation mlp_hidden_act activation_function activation hidden_function act_fn
    )"},
    {"rms_norm rmsnorm RMSNorm rms", R"(
    norm_type normalization normalization_type layernorm_type
    normalization_function layer_norm_type norm_class norm_kind
    )"},
    {"rope rotary default", R"(
    position_embedding_type pos_embedding_type position_encoding_type
    )"},
    {"full gqa mha mqa full_attention softmax default causal", R"(
    attention_type attn_type
    )"},
    {"none default", R"(
    rope_scaling_type
    )"},
};
// Other models' names for fields that are read under our name: both must have the same value.
constexpr Same kSame[] = {
    {"hidden_size", [](const Config& c) -> double { return c.hidden_size; }, R"(
    d_model n_embd hidden_dim dim_model_base
    )"},
    {"num_hidden_layers", [](const Config& c) -> double { return c.num_hidden_layers; }, R"(
    n_layer n_layers num_layers
    )"},
    {"num_attention_heads", [](const Config& c) -> double { return c.num_attention_heads; }, R"(
    n_head n_heads num_heads
    )"},
    {"num_key_value_heads", [](const Config& c) -> double { return c.num_key_value_heads; }, R"(
    n_head_kv num_kv_heads n_kv_heads num_query_groups multi_query_group_num
    )"},
    {"head_dim", [](const Config& c) -> double { return c.head_dim; }, R"(
    kv_channels v_head_dim value_head_dim qk_head_dim rotary_dim rope_dim rotary_emb_dim rotary_ndims
    )"},
    {"intermediate_size", [](const Config& c) -> double { return c.intermediate_size; }, R"(
    moe_intermediate_size expert_intermediate_size expert_ffn_size moe_ffn_hidden_size
    )"},
    {"intermediate_size_mlp", [](const Config& c) -> double { return c.intermediate_size_mlp; }, R"(
    shared_expert_intermediate_size shared_intermediate_size moe_shared_expert_intermediate_size
    )"},
    {"num_local_experts", [](const Config& c) -> double { return c.num_local_experts; }, R"(
    num_experts n_experts n_routed_experts moe_num_experts
    )"},
    {"num_experts_per_tok", [](const Config& c) -> double { return c.num_experts_per_tok; }, R"(
    num_experts_per_token experts_per_token num_selected_experts moe_topk moe_k moe_top_k moe_router_topk
    top_k_experts num_activated_experts
    )"},
    {"norm_topk_prob", [](const Config& c) -> double { return c.norm_topk_prob ? 1 : 0; }, R"(
    moe_renormalize route_norm
    )"},
    {"routed_scaling_factor", [](const Config& c) -> double { return c.routed_scaling_factor; }, R"(
    route_scale moe_router_topk_scaling_factor router_scaling_factor
    )"},
    {"has_expert_bias", [](const Config& c) -> double { return c.has_expert_bias() ? 1 : 0; }, R"(
    use_expert_bias moe_router_enable_expert_bias use_routing_bias use_moe_bias e_score_correction_bias
    )"},
    {"rms_norm_eps", [](const Config& c) -> double { return c.rms_norm_eps; }, R"(
    norm_eps norm_epsilon rms_norm_epsilon layer_norm_eps layer_norm_epsilon layernorm_epsilon
    )"},
    {"rope_theta", [](const Config& c) -> double { return c.rope_theta; }, R"(
    rope_base rotary_base rotary_emb_base global_rope_theta rope_local_base_freq local_rope_theta swa_rope_theta
    )"},
    {"scale", [](const Config& c) -> double { return c.attention_scale; }, R"(
    attention_multiplier softmax_scale qk_scale attn_softmax_scale
    )"},
    {"tie_word_embeddings", [](const Config& c) -> double { return c.tie_word_embeddings ? 1 : 0; }, R"(
    tie_embedding_weights tie_embeddings tied_embeddings weight_tying tie_weights
    )"},
};
constexpr std::string_view kRouterScore = R"(
    scoring_func score_func score_function moe_router_score_function moe_router_activation_func
    expert_selection_fn moe_gating gating_function router_activation moe_router_activation router_activation_func
)";
// clang-format on
constexpr std::string_view kShared = "n_shared_experts num_shared_experts moe_num_shared_experts";
constexpr std::string_view kInLayerTypes =
    "use_sliding_window sliding_window_pattern attention_chunk_size full_attention_interval global_attn_every_n_layers";
constexpr std::string_view kInRopeLayers = "no_rope_layer_interval nope_layer_interval";
constexpr std::string_view kWindows = "attention_window_size sliding_window_size local_window_size window_size";

bool has_word(std::string_view words, std::string_view word) {
  if (word.empty() || word.find_first_of(" \n") != std::string_view::npos) return false;
  for (size_t at = words.find(word); at != std::string_view::npos; at = words.find(word, at + 1)) {
    const size_t end = at + word.size();
    const auto blank = [&words](size_t place) { return words[place] == ' ' || words[place] == '\n'; };
    if ((at == 0 || blank(at - 1)) && (end == words.size() || blank(end))) return true;
  }
  return false;
}

// True and false count as 1 and 0.
std::optional<double> number_of(const Json& value) {
  if (value.boolean() != nullptr) return *value.boolean() ? 1 : 0;
  return value.number();
}

bool close(double a, double b) { return a == b || std::abs(a - b) <= 1e-6 * std::max(std::abs(a), std::abs(b)); }

bool is_off(const Json& value, std::string_view allowed) {
  if (value.is_null()) return true;
  if (value.members() != nullptr) return value.members()->empty();
  if (const Json::Items* items = value.items()) {
    return std::all_of(items->begin(), items->end(), [allowed](const Json& each) { return is_off(each, allowed); });
  }
  if (value.text() != nullptr) {
    return *value.text() != "0" && *value.text() != "1" && has_word(allowed, *value.text());
  }
  const std::optional<double> number = number_of(value);
  return (number == 0.0 && has_word(allowed, "0")) || (number == 1.0 && has_word(allowed, "1"));
}

bool has_items(const Json& object, const char* name) {
  const Json* list = object.find(name);
  return list != nullptr && list->items() != nullptr && !list->items()->empty();
}

bool counts_all_layers(const Json& value, const Config& config) {
  const Json::Items* items = value.items();
  if (items == nullptr || items->size() != static_cast<size_t>(config.num_hidden_layers)) return false;
  for (size_t layer = 0; layer < items->size(); ++layer) {
    if (number_of((*items)[layer]) != static_cast<double>(layer)) return false;
  }
  return true;
}

// Whether the value of a key that is in none of the lists is acceptable; nothing if the key is unknown.
std::optional<bool> special_fits(std::string_view key, const Json& value, const Json& object, const Config& config) {
  const std::optional<double> number = number_of(value);
  if (has_word(kRouterScore, key)) {
    const char* own = config.router_score == RouterScore::sigmoid ? "sigmoid" : "softmax";
    return value.text() != nullptr && *value.text() == own;
  }
  if (has_word(kShared, key)) {
    const int shared = config.intermediate_size_mlp;
    return number && (*number * config.intermediate_size == shared || (*number == 1 && shared > 0));
  }
  if (key == "original_max_position_embeddings") {
    return !config.has_rope_scaling || number == config.rope_scaling.original_max_position_embeddings;
  }
  if (key == "query_pre_attn_scalar") {
    return number && *number > 0 && close(1 / std::sqrt(*number), config.attention_scale);
  }
  if (key == "topk_method") {
    return value.text() != nullptr && *value.text() == (config.has_expert_bias() ? "noaux_tc" : "greedy");
  }
  if (key == "moe_layers") return counts_all_layers(value, config);
  if (has_word(kWindows, key)) {
    return number == 0.0 || number == -1.0 ||
           (config.sliding_window != 0 && number == static_cast<double>(config.sliding_window));
  }
  if (has_word(kInRopeLayers, key)) return number == 0.0 || has_items(object, "no_rope_layers");
  if (key == "use_sliding_window" && number == 0.0) {
    return std::all_of(config.window.begin(), config.window.end(), [](int window) { return window == 0; });
  }
  if (has_word(kInLayerTypes, key)) return number == 0.0 || has_items(object, "layer_types");
  return std::nullopt;
}

std::optional<bool> fits(std::string_view key, const Json& value, const Json& object, const Config& config) {
  for (const Off& off : kOff) {
    if (has_word(off.keys, key)) return is_off(value, off.allowed);
  }
  for (const Same& same : kSame) {
    if (!has_word(same.keys, key)) continue;
    const std::optional<double> number = number_of(value);
    return number && close(*number, same.own(config));
  }
  return special_fits(key, value, object, config);
}

}  // namespace

std::string foreign_fault(const Json& object, const Config& config) {
  for (const JsonMember& member : *object.members()) {
    if (member.value.is_null() || fits(member.name, member.value, object, config).value_or(true)) continue;
    return member.name + " is " + show(member.value) +
           ", which changes what a model computes in a way that is not supported";
  }
  return "";
}

}  // namespace mobilemoe
