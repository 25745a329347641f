"""Promises of config: a fault in a file or in an argument is named in one line."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config_cases import META_S, META_S_QAT, QUANTIZATION, SMALL, refusal
from mobilemoe.config import ModelConfig, RopeScaling
from mobilemoe.config_rules import FULL, SLIDING
from mobilemoe.errors import ConfigError

FAULTS = {
    "more active than there are": ({"num_experts_per_tok": 70}, "num_experts_per_tok is 70, but there are only 60"),
    "a missing key": ({"vocab_size": ...}, "vocab_size is missing"),
    "another model type": ({"model_type": "llama4"}, "model_type is 'llama4', but only 'mobilemoe' is supported"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu', but only 'silu' is supported"),
    "biases": ({"attention_bias": True}, "attention_bias is True, but only False"),
    "every second layer": ({"interleave_moe_layer_step": 2}, "interleave_moe_layer_step is 2, but only 1"),
    "a layer without rope": ({"no_rope_layers": [1, 0]}, "no_rope_layers is not all 1"),
    "rope as a number": ({"no_rope_layers": 1}, "no_rope_layers is 1, not a list"),
    "a fraction": ({"hidden_size": 768.0}, "hidden_size is 768.0, not a whole number"),
    "a truth": ({"num_hidden_layers": True}, "num_hidden_layers is True, not a whole number"),
    "a text": ({"rope_theta": "1e4"}, "rope_theta is '1e4', not a number"),
    "infinity": ({"rope_theta": float("inf")}, "rope_theta is inf, not a finite number"),
    "not a number": ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, not a finite number"),
    "more than a float": ({"rope_theta": 10**400}, "rope_theta is 1000"),
    "zero": ({"num_key_value_heads": 0}, "num_key_value_heads is 0, but must be positive"),
    "below zero": ({"intermediate_size_mlp": -1}, "intermediate_size_mlp is -1, but must not be negative"),
    "heads that do not divide": ({"num_key_value_heads": 5}, "num_attention_heads is 12, not a multiple of num_key"),
    "an odd head": ({"head_dim": 63}, "head_dim is 63, but RoPE needs an even number"),
    "a truth as text": ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes', neither true nor false"),
    "a norm as text": ({"use_qk_norm": "false"}, "use_qk_norm is 'false', neither true nor false"),
    "an unknown norm": ({"qk_norm": "layer"}, "qk_norm is 'layer', not one of none, head"),
    "an unknown score": ({"router_score": "relu"}, "router_score is 'relu', not one of sigmoid, softmax"),
    "dense with experts": ({"ffn_type": "dense"}, "ffn_type is dense, so num_local_experts"),
    "too few layer types": ({"layer_types": [FULL]}, "layer_types has 1 entries, but num_hidden_layers is 20"),
    "layer types as text": ({"layer_types": FULL}, f"layer_types is '{FULL}', not a list"),
    "an unknown layer type": ({"layer_types": ["chunked"] * 20}, "layer_types holds 'chunked', but only"),
    "a window without width": ({"layer_types": [SLIDING] * 20}, "sliding_window is missing"),
    "a window of nothing": ({"sliding_window": 0}, "sliding_window is 0, but must be positive"),
    "an end below zero": ({"eos_token_id": [1, -1]}, "eos_token_id holds -1, not a token id"),
    "a fractional end": ({"eos_token_id": 1.5}, "eos_token_id is 1.5, not a list"),
    "a start below zero": ({"bos_token_id": -1}, "bos_token_id is -1, but must not be negative"),
    "another rope": ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling.rope_type is 'yarn', but only 'llama3'"),
    "rope as a list": ({"rope_scaling": [16]}, "rope_scaling is [16], not an object"),
    "half a rope": ({"rope_scaling": {"rope_type": "llama3", "factor": 2}}, "rope_scaling.original_max"),
    "quantization as text": ({"quantization": "int4"}, "quantization is 'int4', not an object"),
    "another group": ({"quantization": QUANTIZATION | {"group_size": 64}}, "quantization.group_size is 64, but only"),
    "another axis": (
        {"quantization": QUANTIZATION | {"expert_group_axis": "both"}},
        "quantization.expert_group_axis is 'both', neither",
    ),
}


@pytest.mark.parametrize(("change", "words"), FAULTS.values(), ids=FAULTS)
def test_a_bad_value_is_refused_by_field_value_and_rule(change, words):
    raw = {key: value for key, value in (META_S | change).items() if value is not ...}
    text = refusal(ModelConfig.from_dict, raw, "some/config.json")
    assert text.startswith("some/config.json: ")
    assert words in text


ROPE_FAULTS = {
    "rope_scaling.factor is 0, not a positive number": {"factor": 0},
    "rope_scaling.factor is True": {"factor": True},
    "rope_scaling.low_freq_factor is 4, but must not be larger than high_freq_factor 1.0": {"low_freq_factor": 4},
    "rope_scaling.high_freq_factor is inf": {"high_freq_factor": float("inf")},
    "rope_scaling.original_max_position_embeddings is None": {"original_max_position_embeddings": None},
}


@pytest.mark.parametrize(("words", "change"), ROPE_FAULTS.items())
def test_a_bad_rope_scaling_is_refused_from_a_file_and_by_hand(words, change):
    assert words in refusal(RopeScaling, **change)
    raw = META_S | {"rope_scaling": META_S["rope_scaling"] | change}
    assert words in refusal(ModelConfig.from_dict, raw)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"expert_group_axis": "both"}, "expert_group_axis is 'both', not one of in, out"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling is {'factor': 2.0}, not a RopeScaling"),
        ({"layer_types": 5}, "layer_types is 5, not a list"),
        ({"eos_token_id": 5}, "eos_token_id is 5, not a list"),
        ({"eos_token_id": [True]}, "eos_token_id holds True"),
        ({"layer_types": [["x"], []]}, "layer_types holds ['x']"),
    ],
)
def test_a_config_made_by_hand_is_checked_too(change, words):
    assert words in refusal(dataclasses.replace, SMALL, **change)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 200)
    | st.sampled_from([10**400, 2**63, 1e308, 5e-324])
    | st.floats()
    | st.sampled_from(["", "head", "dense", "llama3", FULL, SLIDING, "in"])
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["rope_type", "type", "factor", "expert_group_axis", "qmin"]) | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=6,
)
KEYS = sorted({*META_S_QAT, *(entry.name for entry in dataclasses.fields(ModelConfig))})


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.sampled_from([META_S_QAT, SMALL.to_dict(), {}]), st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=4))
def test_junk_in_a_config_raises_config_error_and_nothing_else(base, junk):
    raw = base | junk
    try:
        config = ModelConfig.from_dict(raw)
    except ConfigError as fault:
        assert len(str(fault).splitlines()) == 1  # noqa: PT017
        return
    if config.num_hidden_layers < 10**6:
        assert json.dumps(config.to_dict()) == json.dumps(raw)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(["rope_scaling", "quantization"]), st.data())
def test_junk_inside_the_objects_of_a_config_raises_config_error_and_nothing_else(key, data):
    inside = data.draw(st.dictionaries(st.sampled_from(sorted(META_S_QAT[key])), JUNK, min_size=1, max_size=3))
    try:
        ModelConfig.from_dict(META_S_QAT | {key: META_S_QAT[key] | inside})
    except ConfigError as fault:
        assert key in str(fault)  # noqa: PT017


@pytest.mark.parametrize("raw", [None, [], "mobilemoe", 7])
def test_a_config_that_is_no_object_is_refused(raw):
    assert "not an object" in refusal(ModelConfig.from_dict, raw)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": NaN', "\xff"])
def test_a_damaged_config_file_is_refused_by_its_path(text, tmp_path):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    assert str(tmp_path / "config.json") in refusal(ModelConfig.load, tmp_path)


def test_a_missing_config_file_is_named(tmp_path):
    assert f"{tmp_path / 'config.json'} does not exist" in refusal(ModelConfig.load, tmp_path)
