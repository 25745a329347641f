"""Promises of config: files come back unchanged, and what means the same is equal."""

import dataclasses
import json

import pytest

from config_cases import META_S, META_S_QAT, QUANTIZATION, SMALL
from mobilemoe.config import ModelConfig, RopeScaling
from mobilemoe.config_rules import FULL, SLIDING
from mobilemoe.presets import PRESETS


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
    raw = META_S | {"rope_scaling": META_S["rope_scaling"] | {"type": "llama3", "nobody_knows": 32}}
    assert ModelConfig.from_dict(raw).to_dict() == raw
