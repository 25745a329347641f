"""Changes to a config.json, as transformers 5 and other models bring them: which are read, and which refused."""

from config_cases import SMALL
from mobilemoe.config import RopeScaling
from mobilemoe.config_rules import FULL, SLIDING

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "original_max_position_embeddings": 4096,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
NEW = {**LLAMA3, "rope_theta": 10000.0}
SCALING = RopeScaling(factor=8.0, original_max_position_embeddings=4096, high_freq_factor=4.0)


MIXED = {"layer_types": [FULL, SLIDING] * 10, "sliding_window": 64}
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}

READ = {
    "all layers": ({"rope_parameters": NEW}, 10000.0, SCALING),
    "no type": ({"rope_parameters": {"rope_theta": 3e5}}, 3e5, None),
    "no scaling": ({"rope_parameters": DEFAULT}, 10000.0, None),
    "by kind": ({"rope_parameters": {FULL: NEW, SLIDING: NEW}, **MIXED}, 10000.0, SCALING),
    "a kind that no layer has": ({"rope_parameters": {FULL: NEW, SLIDING: DEFAULT}}, 10000.0, SCALING),
    "an absent kind": ({"rope_parameters": {FULL: NEW, SLIDING: None}}, 10000.0, SCALING),
    "the base outside": ({"rope_parameters": LLAMA3, "rope_theta": 10000}, 10000.0, SCALING),
    "the base twice": ({"rope_parameters": NEW, "rope_theta": 10000}, 10000.0, SCALING),
    "both, the same": ({"rope_parameters": NEW, "rope_scaling": LLAMA3, "rope_theta": 1e4}, 10000.0, SCALING),
    "the older key void": ({"rope_parameters": NEW, "rope_scaling": None, "rope_theta": None}, 10000.0, SCALING),
    "the newer key void": ({"rope_parameters": None, "rope_scaling": LLAMA3, "rope_theta": 1e4}, 10000.0, SCALING),
    "the newer key empty": ({"rope_parameters": {}, "rope_theta": 1e4}, 10000.0, None),
    "the base in the older key": ({"rope_scaling": NEW}, 10000.0, SCALING),
    "the whole head": ({"rope_parameters": {**NEW, "partial_rotary_factor": 1.0}}, 10000.0, SCALING),
}
REFUSED = {
    "yarn": (
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4}},
        "rope_parameters.rope_type is",
    ),
    "linear": ({"rope_parameters": {"type": "linear", "rope_theta": 1e4, "factor": 4}}, "rope_parameters.rope_type is"),
    "proportional": (
        {"rope_parameters": {FULL: {"rope_type": "proportional", "rope_theta": 1e4}}},
        f"{FULL}.rope_type",
    ),
    "two types": ({"rope_parameters": {**NEW, "type": "yarn"}}, "rope_parameters.type is 'yarn'"),
    "no base": ({"rope_parameters": LLAMA3}, "rope_parameters.rope_theta is missing"),
    "a base of text": ({"rope_parameters": {**NEW, "rope_theta": "1e4"}}, "rope_parameters.rope_theta is '1e4'"),
    "a base of null": ({"rope_parameters": {**NEW, "rope_theta": None}}, "rope_parameters.rope_theta is None"),
    "a base below zero": ({"rope_parameters": {**NEW, "rope_theta": -1}}, "rope_parameters.rope_theta is -1"),
    "two bases": (
        {"rope_parameters": NEW, "rope_theta": 5e5},
        "rope_parameters.rope_theta is 10000.0, but rope_theta is",
    ),
    "two scalings": (
        {"rope_parameters": NEW, "rope_scaling": {**LLAMA3, "factor": 2}, "rope_theta": 1e4},
        "rope_parameters and rope_scaling do not say the same",
    ),
    "a scaling and none": (
        {"rope_parameters": DEFAULT, "rope_scaling": LLAMA3},
        "rope_parameters and rope_scaling do not say the same",
    ),
    "kinds that differ": (
        {"rope_parameters": {FULL: NEW, SLIDING: {**NEW, "rope_theta": 1e6}}, **MIXED},
        f"rope_parameters.{SLIDING}.rope_theta is 1000000.0, but rope_parameters.{FULL}.rope_theta is",
    ),
    "kinds scaled otherwise": ({"rope_parameters": {FULL: NEW, SLIDING: DEFAULT}, **MIXED}, "do not say the same"),
    "a kind without": (
        {"rope_parameters": {FULL: NEW}, **MIXED},
        f"rope_parameters.{SLIDING} is None, but every layer",
    ),
    "both layouts at once": (
        {"rope_parameters": {FULL: NEW, "rope_theta": 1e4}},
        "rope_parameters holds rope_theta beside",
    ),
    "half a head": (
        {"rope_parameters": {**NEW, "partial_rotary_factor": 0.5}},
        "rope_parameters.partial_rotary_factor",
    ),
    "a missing number": ({"rope_parameters": {**DEFAULT, "rope_type": "llama3"}}, "rope_parameters.factor is missing"),
    "a wrong number": ({"rope_parameters": {**NEW, "factor": 0}}, "rope_parameters.factor is 0, not a positive"),
    "a list": ({"rope_parameters": [NEW]}, "rope_parameters is"),
    "two dtypes": ({"torch_dtype": "float16"}, "dtype is 'bfloat16', but torch_dtype is 'float16'"),
    "windows in no layer": (
        {"sliding_window": 64, "layer_types": None},
        "sliding_window is 64, but layer_types does not",
    ),
    "the quantisation of MLX": ({"quantization": {"group_size": 32, "bits": 4}}, "quantization.bits is 4, but only"),
}


FITS = [
    ({"n_shared_experts": 1}, True),
    ({"n_shared_experts": SMALL.intermediate_size_mlp // SMALL.intermediate_size}, True),
    ({"n_shared_experts": 0}, False),
    ({"num_shared_experts": 99}, False),
    (
        {"original_max_position_embeddings": 77, "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 77}},
        True,
    ),
    ({"original_max_position_embeddings": 77, "rope_scaling": LLAMA3}, False),
    ({"query_pre_attn_scalar": SMALL.head_dim}, True),
    ({"query_pre_attn_scalar": 10**400}, False),
    ({"query_pre_attn_scalar": SMALL.head_dim * 2}, False),
    ({"attention_multiplier": SMALL.head_dim**-0.5}, True),
    ({"attention_multiplier": 0.015625}, False),
    ({"topk_method": "noaux_tc"}, True),
    ({"topk_method": "group_limited_greedy"}, False),
    ({"moe_layers": [0, 1]}, True),
    ({"moe_layers": [1]}, False),
    ({"sliding_window_pattern": 6}, True),
    ({"sliding_window_pattern": 6, "layer_types": None}, False),
    ({"attention_chunk_size": 8192}, True),
    ({"attention_chunk_size": 8192, "layer_types": []}, False),
    ({"no_rope_layer_interval": 4}, True),
    ({"no_rope_layer_interval": 4, "no_rope_layers": []}, False),
    ({"use_sliding_window": False, "sliding_window": 64, "layer_types": None}, True),
    ({"use_sliding_window": True, "layer_types": None}, False),
    ({"use_sliding_window": False, "sliding_window": 64, "layer_types": [FULL, SLIDING]}, False),
    ({"sliding_window": SMALL.max_position_embeddings, "layer_types": None}, True),
    ({"window_size": 5}, False),
    ({"window_size": -1}, True),
]
