"""Keys of other models' config.json: what is not computed here is refused by name, never passed over.

The list is closed: a key that is neither in it nor read by `config` is unknown, is kept when a config is written and
is listed by `mobilemoe info`. native/src/files/config_keys.cpp is its twin; a test compares their verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from mobilemoe.config_rules import SLIDING, is_finite
from mobilemoe.errors import ConfigError

# By what may stand there without changing what is computed, besides null, {} and lists of it.
_OFF = {
    (): """
        quantization_config compression_config vision_config audio_config text_config encoder_config
        activation_sparsity_pattern mlp_only_layers dense_layers nope_layers layers_block_type block_types
        hybrid_override_pattern attn_type_list linear_attn_config ssm_cfg mamba_d_state full_attn_idxs pruned_heads
        dual_chunk_attention_config mlp_multipliers ssm_multipliers
        attn_config ffn_config moe_config mamba_config ssm_config attn_layer_indices memory_layers
    """,
    (0,): """
        mlp_bias ffn_bias use_bias bias qkv_bias add_qkv_bias attention_qkv_bias attention_out_bias
        attention_output_bias o_bias lm_head_bias add_bias_linear router_bias expert_bias moe_bias
        qk_layernorm qk_layer_norm use_qkv_norm attn_qk_norm clip_qkv
        final_logit_softcapping attn_logit_softcapping attention_logit_softcapping router_logit_softcapping
        final_logit_softcap attn_logit_softcap logit_softcap output_logit_soft_cap attention_logit_cap
        scale_embedding scale_embeddings normalize_embedding normalize_embeddings use_embedding_norm use_mup mup_enabled
        attn_output_gate attention_output_gate use_attention_gate gated_attention elementwise_attn_output_gate
        headwise_attn_output_gate use_attention_sinks use_attention_sink attention_sinks attention_sink use_sinks
        attention_sink_size num_attention_sinks add_swa_attention_sink_bias add_full_attention_sink_bias
        swiglu_limit moe_swiglu_limit scale_depth
        first_k_dense_replace num_dense_layers n_dense_layers first_dense_layers moe_layer_start_index
        num_zero_experts zero_expert_num num_null_experts moe_latent_size
        use_shared_expert_gate shared_expert_gate moe_apply_router_weight_on_input apply_router_weight_on_input
        q_lora_rank kv_lora_rank o_lora_rank qk_rope_head_dim qk_nope_head_dim use_mla
        index_topk index_n_heads index_head_dim
        norm_after use_post_norm post_norm use_sandwich_norm sandwich_norm use_post_attention_norm parallel_residual
        use_parallel_residual parallel_attn apply_residual_connection_post_layernorm
        rms_norm_add_unit_offset norm_plus_one add_unit_offset zero_centered_norm layernorm_zero_centered
        alibi use_alibi use_mrope use_logn_attn use_dynamic_ntk scale_attn_by_inverse_layer_idx
        num_kv_shared_layers hidden_size_per_layer_input laurel_rank mamba_expand conv_L_cache
        is_encoder_decoder add_cross_attention use_bidirectional_attention bidirectional
        block_sparse sparse_attention use_sparse_attention value_residual use_value_residual layer_scale
        layerscale use_layer_scale layer_scale_init_value layerscale_value embedding_norm embed_norm
        use_embed_norm v_norm use_v_norm o_norm use_qk_l2norm use_qk_l2_norm qk_l2_norm attention_gate attn_gate
        gated_attn use_attn_gate use_output_gate cross_layer_sharing kv_sharing attention_k_eq_v
        use_double_wide_mlp global_head_dim num_global_key_value_heads apply_layernorm_1p norm_before_gate xpos
        use_xpos cope use_cope use_grouped_topk mamba_d_conv mamba_d_ssm mamba_n_heads mamba_num_heads
        mamba_head_dim ssm_state_size conv_kernel conv_bias short_conv linear_conv_kernel_dim
        linear_num_key_heads linear_num_value_heads
    """,
    (0, 1): """
        n_group topk_group n_groups num_expert_group num_limited_groups altup_num_inputs hc_mult cla_share_factor
        attn_layer_period
    """,
    (1,): """
        partial_rotary_factor rotary_pct rotary_percent rope_pct rope_percentage rope_ratio rope_factor
        rope_scaling_factor logit_scale logits_scaling logit_multiplier logits_multiplier lm_head_multiplier
        embedding_multiplier embedding_scale embed_scale scale_emb residual_multiplier residual_scale
        attention_in_multiplier attention_out_multiplier attention_output_multiplier attention_value_scale
        key_multiplier output_multiplier_scale embedding_multiplier_scale mup_width_multiplier
        mup_embeddings_multiplier mup_attn_multiplier swiglu_alpha
        decoder_sparse_step moe_layer_freq moe_layer_frequency moe_every_n_layers moe_layer_interval expert_interval
        rope_interleaved rope_interleave rotary_interleaved is_rope_interleaved
        use_rope use_rotary use_rotary_embeddings use_rms_norm rms_norm scale_attn_weights is_causal
        do_layer_norm_before final_layernorm use_final_norm
        output_scale resid_scale hidden_states_scale emb_scale embeddings_scale pre_norm use_pre_norm final_norm
        skip_connections
    """,
    ("silu", "swish"): "hidden_activation mlp_hidden_act activation_function activation hidden_function act_fn",
    ("rms_norm", "rmsnorm", "RMSNorm", "rms"): "norm_type normalization normalization_type layernorm_type "
    "normalization_function layer_norm_type norm_class norm_kind",
    ("rope", "rotary", "default"): "position_embedding_type pos_embedding_type position_encoding_type",
    ("full", "gqa", "mha", "mqa", "full_attention", "softmax", "default", "causal"): "attention_type attn_type",
    ("none", "default"): "rope_scaling_type",
}
# Other names of what is read here: they must say the same.
_SAME = {
    "hidden_size": "d_model n_embd hidden_dim dim_model_base",
    "num_hidden_layers": "n_layer n_layers num_layers",
    "num_attention_heads": "n_head n_heads num_heads",
    "num_key_value_heads": "n_head_kv num_kv_heads n_kv_heads num_query_groups multi_query_group_num",
    "head_dim": "kv_channels v_head_dim value_head_dim qk_head_dim rotary_dim rope_dim rotary_emb_dim rotary_ndims",
    "intermediate_size": "moe_intermediate_size expert_intermediate_size expert_ffn_size moe_ffn_hidden_size",
    "intermediate_size_mlp": "shared_expert_intermediate_size shared_intermediate_size "
    "moe_shared_expert_intermediate_size",
    "num_local_experts": "num_experts n_experts n_routed_experts moe_num_experts",
    "num_experts_per_tok": "num_experts_per_token experts_per_token num_selected_experts moe_topk moe_k moe_top_k "
    "moe_router_topk top_k_experts num_activated_experts",
    "norm_topk_prob": "moe_renormalize route_norm",
    "routed_scaling_factor": "route_scale moe_router_topk_scaling_factor router_scaling_factor",
    "router_score": "scoring_func score_func score_function moe_router_score_function moe_router_activation_func "
    "expert_selection_fn moe_gating gating_function router_activation moe_router_activation router_activation_func",
    "has_expert_bias": "use_expert_bias moe_router_enable_expert_bias use_routing_bias use_moe_bias "
    "e_score_correction_bias",
    "rms_norm_eps": "norm_eps norm_epsilon rms_norm_epsilon layer_norm_eps layer_norm_epsilon layernorm_epsilon",
    "rope_theta": "rope_base rotary_base rotary_emb_base global_rope_theta rope_local_base_freq local_rope_theta "
    "swa_rope_theta",
    "scale": "attention_multiplier softmax_scale qk_scale attn_softmax_scale",
    "tie_word_embeddings": "tie_embedding_weights tie_embeddings tied_embeddings weight_tying tie_weights",
}
# Keys that say which layers have a window or no RoPE; where the list of layers says it, they change nothing.
_IN_LAYER_TYPES = (
    "use_sliding_window sliding_window_pattern attention_chunk_size full_attention_interval global_attn_every_n_layers"
)
_IN_ROPE_LAYERS = "no_rope_layer_interval nope_layer_interval"
_WINDOWS = "attention_window_size sliding_window_size local_window_size window_size"
_SPECIAL = (
    "n_shared_experts num_shared_experts moe_num_shared_experts original_max_position_embeddings "
    f"query_pre_attn_scalar topk_method moe_layers {_IN_LAYER_TYPES} {_IN_ROPE_LAYERS} {_WINDOWS}"
)
_REFUSED = "is {!r}, which changes what a model computes in a way that is not supported"

OFF_KEYS = {key: allowed for allowed, keys in _OFF.items() for key in keys.split()}
SAME_KEYS = {key: name for name, keys in _SAME.items() for key in keys.split()}
SPECIAL_KEYS = tuple(_SPECIAL.split())
FOREIGN_KEYS = frozenset((*OFF_KEYS, *SAME_KEYS, *SPECIAL_KEYS))

# Nothing that is computed here depends on them.
_HARMLESS = """
    transformers_version auto_map use_cache initializer_range pad_token_id _name_or_path name_or_path
    output_router_logits router_aux_loss_coef aux_loss_alpha router_jitter_noise output_attentions output_hidden_states
    return_dict torchscript id2label label2id problem_type resid_pdrop embd_pdrop attn_pdrop hidden_dropout
    attn_implementation _attn_implementation pretraining_tp unsloth_version
"""
HARMLESS_KEYS = frozenset(_HARMLESS.split())


def check_foreign_keys(raw: Mapping[str, Any], config: Any) -> None:
    """Raises ConfigError for the first key of `raw` that means another computation than that of `config`."""
    for _, sentence in foreign_faults(raw, config):
        raise ConfigError(sentence)


def foreign_faults(raw: Mapping[str, Any], config: Any) -> Iterator[tuple[str, str]]:
    """Each key of `raw` that means another computation than that of `config`, with the sentence that says so."""
    for key, value in raw.items():
        if key not in FOREIGN_KEYS or value is None:
            continue
        if key in SAME_KEYS:
            name = SAME_KEYS[key]
            if not _same(value, own := getattr(config, name)):
                what = "the attention's scale" if name == "scale" else name
                yield key, f"{key} is {value!r}, but {what} is {own!r}"
        elif key in OFF_KEYS:
            if not _is_off(value, OFF_KEYS[key]):
                yield key, f"{key} {_REFUSED.format(value)}"
        elif not _special_fits(key, value, raw, config):
            yield key, f"{key} {_REFUSED.format(value)} here"


def _is_off(value: Any, allowed: tuple[Any, ...]) -> bool:
    if isinstance(value, list | dict):
        return all(_is_off(entry, allowed) for entry in value) if isinstance(value, list) else not value
    return value is None or value in allowed


def _same(value: Any, own: Any) -> bool:
    if isinstance(own, str) or isinstance(value, str):
        return bool(value == own)
    return bool(value == own) or (is_finite(value) and math.isclose(value, own, rel_tol=1e-6))


def _special_fits(key: str, value: Any, raw: Mapping[str, Any], config: Any) -> bool:
    number = float(value) if isinstance(value, bool) or is_finite(value) else math.nan
    if key.endswith("shared_experts"):
        shared = config.intermediate_size_mlp
        return bool(number * config.intermediate_size == shared or (number == 1 and shared > 0))
    if key == "original_max_position_embeddings":
        scaling = config.rope_scaling
        return bool(scaling is None or number == scaling.original_max_position_embeddings)
    if key == "query_pre_attn_scalar":
        return number > 0 and math.isclose(number**-0.5, config.scale, rel_tol=1e-6)
    if key == "topk_method":
        return bool(value == ("noaux_tc" if config.has_expert_bias else "greedy"))
    if key == "moe_layers":
        return bool(value == list(range(config.num_hidden_layers)))
    if key in _WINDOWS.split():
        return number in (0, -1, config.sliding_window)
    if key in _IN_ROPE_LAYERS.split():
        return number == 0 or bool(raw.get("no_rope_layers"))
    if key == "use_sliding_window" and number == 0:
        return SLIDING not in config.layer_types
    return number == 0 or bool(raw.get("layer_types"))
