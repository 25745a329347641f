"""A published config file, a small config, and how a fault in one is caught."""

import pytest

from mobilemoe.errors import ConfigError
from mobilemoe.presets import family_member

# spec 3.3 in its order, S's numbers, with keys between that this package does not know.
META_S = {
    "transformers_version": "4.57.1",
    "model_type": "mobilemoe",
    "architectures": ["MobileMoEForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_mobilemoe.MobileMoEConfig"},
    "vocab_size": 128256,
    "hidden_size": 768,
    "intermediate_size": 384,
    "intermediate_size_mlp": 1536,
    "num_hidden_layers": 20,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000,
    "rope_scaling": {
        "rope_type": "llama3",
        "high_freq_factor": 1.0,
        "factor": 16.0,
        "original_max_position_embeddings": 8192,
        "low_freq_factor": 1,
    },
    "use_cache": True,
    "num_local_experts": 60,
    "num_experts_per_tok": 4,
    "interleave_moe_layer_step": 1,
    "no_rope_layers": [1] * 20,
    "layer_types": ["full_attention"] * 20,
    "use_qk_norm": True,
    "attn_temperature_tuning": False,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "eos_token_id": [128001, 128007, 128008],
    "initializer_range": 0.02,
}
QUANTIZATION = {
    "format": "mobilemoe-int4-g32",
    "group_size": 32,
    "embedding_group_size": 32,
    "qmin": -8,
    "qmax": 7,
    "symmetric": True,
    "scale_dtype": "float16",
    "linear_group_axis": "in (last dim of [out, in])",
    "expert_group_axis": "out (last dim of [E, in, out])",
    "packed": True,
}
META_S_QAT = {**META_S, "quantization": QUANTIZATION}
SMALL = family_member(64, vocab_size=96, layers=2)


def refusal(make, *args, **kwargs) -> str:
    with pytest.raises(ConfigError) as caught:
        make(*args, **kwargs)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)
