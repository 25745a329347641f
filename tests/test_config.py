"""Promises of config and presets: files come back unchanged, presets are the published models, faults are named."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobilemoe.accounting import active_parameters
from mobilemoe.config import ModelConfig, RopeScaling
from mobilemoe.config_rules import FULL, SLIDING
from mobilemoe.errors import ConfigError, UsageError
from mobilemoe.presets import PRESETS, derive, family_member, preset

# SPEC 3.3 in its order, S's numbers, with keys between that this package does not know.
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


# ---- files


@pytest.mark.parametrize("raw", [META_S, META_S_QAT], ids=["base", "qat"])
def test_a_published_config_is_written_back_unchanged_to_the_byte(raw, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config = ModelConfig.load(tmp_path)
    assert json.dumps(config.to_dict()) == json.dumps(raw)
    config.save(tmp_path / "copy")
    assert json.dumps(json.loads((tmp_path / "copy" / "config.json").read_text())) == json.dumps(raw)


def test_a_published_config_means_the_preset():
    ids = ("bos_token_id", "eot_token_id", "header_start_token_id", "header_end_token_id")
    without_ids = dataclasses.replace(PRESETS["S"], **dict.fromkeys(ids))
    assert ModelConfig.from_dict(META_S) == without_ids
    assert ModelConfig.from_dict(META_S_QAT) == dataclasses.replace(without_ids, expert_group_axis="out")


@pytest.mark.parametrize("axis", [None, "in", "out"])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_being_written_and_read(name, axis):
    config = dataclasses.replace(PRESETS[name], expert_group_axis=axis)
    written = json.loads(json.dumps(config.to_dict()))
    read = ModelConfig.from_dict(written)
    assert read == config
    assert json.dumps(read.to_dict()) == json.dumps(written)


def test_a_written_config_has_every_key_of_the_published_files():
    unknown = {"transformers_version", "auto_map", "use_cache", "initializer_range"}
    quantized = dataclasses.replace(PRESETS["S"], expert_group_axis="out")
    assert META_S_QAT.keys() - unknown <= quantized.to_dict().keys()
    assert quantized.to_dict()["quantization"] == QUANTIZATION
    assert "quantization" not in PRESETS["S"].to_dict()


CHANGES = {
    "fewer layers": {"num_hidden_layers": 3},
    "windows": {"layer_types": (FULL, SLIDING) * 10, "sliding_window": 64},
    "no rope scaling": {"rope_scaling": None},
    "another rope scaling": {"rope_scaling": RopeScaling(factor=8.0)},
    "no norm of q and k": {"qk_norm": "none"},
    "norm weights": {"qk_norm": "head_weight"},
    "softmax": {"router_score": "softmax", "attention_scale": 0.1},
    "quantized": {"expert_group_axis": "in"},
    "one end": {"eos_token_id": (5,)},
    "no end": {"eos_token_id": ()},
    "dense": {
        "ffn_type": "dense",
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "intermediate_size_mlp": 0,
    },
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_written_and_taking_it_back_gives_the_first_file_again(change):
    first = ModelConfig.from_dict(META_S)
    changed = dataclasses.replace(first, **change)
    written = changed.to_dict()
    assert ModelConfig.from_dict(written) == changed
    kept = [key for key in META_S if key in written]
    assert [key for key in written if key in META_S] == kept
    assert all(written[key] == META_S[key] for key in ("transformers_version", "auto_map", "use_cache"))
    # from the changed file itself, so that no stale key of it survives
    back = dataclasses.replace(ModelConfig.from_dict(written), **{key: getattr(first, key) for key in change})
    assert ModelConfig.from_dict(back.to_dict()) == first


def test_forms_that_mean_the_same_are_equal_and_stay_as_they_were_written():
    variants = {
        "eos_token_id": [7, [7]],
        "layer_types": [None, [], [FULL, FULL]],
        "no_rope_layers": [None, [], [1, 1]],
        "rope_scaling": [None, {"rope_type": "default"}],
        "rope_theta": [500000, 500000.0],
    }
    base = SMALL.to_dict() | {"eos_token_id": 7}
    expected = ModelConfig.from_dict(base)
    for key, values in variants.items():
        for value in values:
            raw = base | {key: value}
            config = ModelConfig.from_dict(raw)
            assert config == expected, (key, value)
            assert json.dumps(config.to_dict()) == json.dumps(raw), (key, value)
    # and made by hand, with lists as TOML gives them
    by_hand = dataclasses.replace(SMALL, layer_types=[FULL, FULL], eos_token_id=[7], rope_theta=500000)
    assert by_hand == expected
    assert hash(by_hand) == hash(expected)


def test_a_read_rope_scaling_keeps_keys_that_mean_nothing_here():
    raw = META_S | {"rope_scaling": META_S["rope_scaling"] | {"type": "llama3", "beta_fast": 32}}
    assert ModelConfig.from_dict(raw).to_dict() == raw


# ---- the models that have names


def test_the_published_dials_give_60_experts_of_which_4_and_a_shared_one_of_four_widths():
    for name, layers, hidden, heads, width in [
        ("S", 20, 768, 12, 384),
        ("M", 26, 1024, 16, 512),
        ("L", 32, 1280, 20, 640),
    ]:
        c = preset(name)
        assert (c.num_hidden_layers, c.hidden_size, c.num_attention_heads) == (layers, hidden, heads)
        assert (c.num_key_value_heads, c.head_dim, c.vocab_size) == (4, 64, 128_256)
        assert (c.num_local_experts, c.num_experts_per_tok) == (60, 4)
        assert (c.intermediate_size, c.intermediate_size_mlp) == (width, 4 * width)
        assert (c.routed_scaling_factor, c.rms_norm_eps, c.rope_theta) == (2.5, 1e-5, 500_000)
        assert c.rope_scaling == RopeScaling(
            factor=16, original_max_position_embeddings=8192, low_freq_factor=1, high_freq_factor=1
        )
        assert c.tie_word_embeddings
        assert c.max_position_embeddings == 8192
        assert c.qk_norm == "head"
        assert c.scale == 0.125


@pytest.mark.parametrize("name", ["S", "M", "L"])
@pytest.mark.parametrize("error", [0.98, 1, 1.02])
def test_derive_finds_the_family_from_active_parameters_and_the_papers_dials(name, error):
    derived = derive(error * active_parameters(PRESETS[name]), rope_scaling=RopeScaling())
    ids = ("bos_token_id", "eos_token_id", "eot_token_id", "header_start_token_id", "header_end_token_id")
    assert dataclasses.replace(derived, **{key: getattr(PRESETS[name], key) for key in ids}) == PRESETS[name]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("granularity", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("expansion", [2, 4, 8, 16, 32])
def test_dials_follow_the_general_rule_and_keep_active_ffn_width(expansion, granularity, shared):
    if shared and granularity == 1:
        assert "granularity is 1" in refusal(family_member, 768, expansion=expansion, granularity=1)
        return
    c = family_member(768, expansion=expansion, granularity=granularity, shared=shared)
    assert c.intermediate_size == 4 * 768 // granularity
    fused = granularity // 2 if shared else 0
    assert c.num_local_experts == expansion * granularity - fused
    assert c.num_experts_per_tok == granularity - fused
    assert c.intermediate_size_mlp == fused * c.intermediate_size
    assert c.num_experts_per_tok * c.intermediate_size + c.intermediate_size_mlp == 4 * 768
    assert c.num_local_experts * c.intermediate_size + c.intermediate_size_mlp == expansion * 4 * 768


@pytest.mark.parametrize("shared", [True, False])
def test_expansion_1_is_the_plain_dense_ffn(shared):
    c = family_member(768, expansion=1, granularity=8, shared=shared)
    assert (c.ffn_type, c.intermediate_size, c.intermediate_size_mlp, c.num_local_experts) == ("dense", 3072, 0, 0)
    assert not c.has_expert_bias


def test_the_dense_baseline_is_one_full_layer_then_three_with_a_window():
    c = PRESETS["mobilellm-pro"]
    assert (c.num_hidden_layers, c.hidden_size, c.intermediate_size, c.vocab_size) == (30, 1280, 6144, 202_048)
    assert (c.num_attention_heads, c.num_key_value_heads, c.head_dim) == (20, 4, 64)
    assert c.scale == 0.1
    assert [c.window(layer) is None for layer in range(30)] == ([True, False, False, False] * 8)[:30]
    assert c.window(1) == 8192


def test_olmoe_routes_by_softmax_without_renormalising_or_a_shared_expert():
    c = PRESETS["olmoe-1b-7b"]
    assert (c.num_hidden_layers, c.hidden_size, c.vocab_size, c.tie_word_embeddings) == (16, 2048, 50_304, False)
    assert (c.num_local_experts, c.num_experts_per_tok, c.intermediate_size) == (64, 8, 1024)
    assert (c.intermediate_size_mlp, c.router_score, c.norm_topk_prob) == (0, "softmax", False)
    assert (c.num_attention_heads, c.num_key_value_heads, c.qk_norm) == (16, 16, "projection_weight")
    assert not c.has_expert_bias


@pytest.mark.parametrize("hidden", [32, 64, 96, 128, 160, 192, 224])
def test_members_below_256_have_heads_of_32_and_key_value_heads_that_divide_them(hidden):
    c = family_member(hidden, vocab_size=96)
    assert (c.head_dim, c.num_attention_heads) == (32, hidden // 32)
    assert c.num_key_value_heads <= min(4, c.num_attention_heads)


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(UsageError, match="there is no preset 'XL': choose one of S, M, L, nano"):
        preset("XL")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: derive(0), "active 0"),
        (lambda: derive(float("nan")), "active is nan"),
        (lambda: derive(1e6), "active is 1e+06"),
        (lambda: derive(1e15), "active is 1e+15"),
        (lambda: derive(3e8, granularity=8209, shared=False), "granularity 8209"),
        (lambda: derive(3e8, granularity=0), "granularity 0"),
        (lambda: derive(3e8, expansion=0), "expansion is 0"),
        (lambda: family_member(100), "hidden_size is 100, not a multiple of the head_dim 32"),
        (lambda: family_member(768, granularity=5), "granularity is 5, but must divide the FFN width 3072"),
        (lambda: family_member(768, layers=-1), "num_hidden_layers is -1"),
    ],
)
def test_dials_that_give_no_model_are_refused_by_name(make, words):
    assert words in refusal(make)


# ---- faults

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
