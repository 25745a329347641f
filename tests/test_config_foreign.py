"""Promises of config about the files of transformers 5 and of other models: read, or refused by name; never ignored."""

import dataclasses
import json

import pytest

from config_cases import META_S, SMALL, refusal
from foreign_configs import DEFAULT, FITS, NEW, READ, REFUSED
from mobilemoe.checkpoint import write_random
from mobilemoe.config import ModelConfig, RopeScaling
from mobilemoe.config_keys import OFF_KEYS, SAME_KEYS, SPECIAL_KEYS
from mobilemoe.config_rope import FOREIGN_SCALING
from mobilemoe.config_rules import FULL

pytest_plugins = ["cli_calls"]

OLD_KEYS = ("rope_theta", "rope_scaling", "torch_dtype")
V5 = {key: value for key, value in META_S.items() if key not in OLD_KEYS} | {"dtype": "bfloat16"}


@pytest.mark.parametrize("case", READ)
def test_rope_is_read_as_transformers_5_writes_it(case):
    changes, theta, scaling = READ[case]
    raw = V5 | changes
    config = ModelConfig.from_dict(raw)
    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)
    assert json.dumps(config.to_dict()) == json.dumps(raw)


@pytest.mark.parametrize("case", REFUSED)
def test_what_contradicts_itself_or_is_not_computed_is_refused_by_name(case):
    changes, complaint = REFUSED[case]
    assert complaint in refusal(ModelConfig.from_dict, V5 | changes)


@pytest.mark.parametrize("entry", [NEW, DEFAULT], ids=["llama3", "default"])
@pytest.mark.parametrize("part", sorted(FOREIGN_SCALING))
def test_what_belongs_to_other_scalings_is_refused_by_name(part, entry):
    for value in ({**entry, part: [1.0]}, {FULL: {**entry, part: 2}}):
        assert f"{part} is" in refusal(ModelConfig.from_dict, V5 | {"rope_parameters": value})
    ModelConfig.from_dict(V5 | {"rope_parameters": {**entry, part: None}})


@pytest.mark.parametrize("part", ["factor", "low_freq_factor", "high_freq_factor"])
def test_a_factor_without_a_scaling_is_refused(part):
    said = refusal(ModelConfig.from_dict, V5 | {"rope_parameters": {**DEFAULT, part: 4.0}})
    assert f"{part} is 4.0, which is not supported with 'default'" in said


@pytest.mark.parametrize("change", [{"rope_theta": 1e6}, {"rope_scaling": None}, {"rope_scaling": RopeScaling()}])
@pytest.mark.parametrize("case", READ)
def test_a_changed_rope_is_written_so_that_old_and_new_keys_agree(case, change):
    changed = dataclasses.replace(ModelConfig.from_dict(V5 | READ[case][0]), **change)
    assert ModelConfig.from_dict(json.loads(json.dumps(changed.to_dict()))) == changed


@pytest.mark.parametrize("case", ["all layers", "by kind", "no scaling", "the base outside"])
def test_transformers_reads_a_written_rope_alike(case):
    transformers = pytest.importorskip("transformers")
    config = dataclasses.replace(ModelConfig.from_dict(V5 | READ[case][0]), rope_theta=20000.0)
    written = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "auto_map")}
    for raw in (written, dataclasses.replace(config, raw={}).to_dict()):
        theirs = transformers.LlamaConfig(**{key: raw[key] for key in raw if key.startswith("rope")}).rope_parameters
        theirs = theirs.get(FULL, theirs)
        assert theirs["rope_theta"] == 20000.0
        assert theirs["rope_type"] == ("default" if config.rope_scaling is None else "llama3")
        assert config.rope_scaling is None or theirs["factor"] == config.rope_scaling.factor


VALUES = (0, 1, 2, 0.5, 30.0, -1, True, False, None, [], [1, 1], [0, 1], [3], {}, {"a": 1}, "", "silu", "rms_norm", "x")


@pytest.mark.parametrize("key", OFF_KEYS)
def test_a_key_that_changes_the_computation_passes_only_where_it_is_off(key):
    base, allowed = SMALL.to_dict(), OFF_KEYS[key]
    for value in VALUES:
        entries = value if isinstance(value, list) else [] if value is None or value == {} else [value]
        raw = base | {key: value}
        if all(entry in allowed for entry in entries):
            config = ModelConfig.from_dict(raw)
            assert config == SMALL
            assert config.to_dict() == raw
        else:
            assert f"{key} is {value!r}" in refusal(ModelConfig.from_dict, raw)


@pytest.mark.parametrize("key", SAME_KEYS)
def test_another_name_must_say_the_same(key):
    base, own = SMALL.to_dict(), getattr(SMALL, SAME_KEYS[key])
    raw = base | {key: own}
    assert ModelConfig.from_dict(raw).to_dict() == raw
    for value in ("softmax", "x", 3, 0.7, [own], {"a": own}):
        assert f"{key} is {value!r}" in refusal(ModelConfig.from_dict, base | {key: value})


@pytest.mark.parametrize(("changes", "fits"), FITS, ids=lambda value: str(value)[:60])
def test_keys_that_depend_on_others(changes, fits):
    raw = SMALL.to_dict() | changes
    if fits:
        assert ModelConfig.from_dict(raw).to_dict() == raw
    else:
        refusal(ModelConfig.from_dict, raw)
    assert {key for key in changes if key not in raw} == set()


def test_each_special_key_is_tried_above():
    tried = {key for changes, _ in FITS for key in changes}
    families = ("shared_experts", "interval", "window", "_pattern", "every_n_layers")
    assert all(key in tried or key.endswith(families) or "window" in key for key in SPECIAL_KEYS)


def test_keys_of_another_shape_are_dropped_where_the_shape_changes():
    raw = SMALL.to_dict() | {"num_layers": 2, "moe_layers": [0, 1], "num_experts": SMALL.num_local_experts, "mine": 7}
    changed = dataclasses.replace(ModelConfig.from_dict(raw), num_hidden_layers=1, num_local_experts=8)
    written = changed.to_dict()
    assert {"num_layers", "moe_layers", "num_experts"}.isdisjoint(written)
    assert written["mine"] == 7
    assert ModelConfig.from_dict(written) == changed


def test_unknown_keys_are_told_and_kept():
    raw = META_S | {"zeta": 1, "my_key": None, "mlp_bias": False, "pad_token_id": 3, "dtype": "bfloat16"}
    config = ModelConfig.from_dict(raw)
    assert config.unknown_keys == ("my_key", "zeta")
    assert config.to_dict() == raw
    assert ModelConfig.from_dict(META_S).unknown_keys == SMALL.unknown_keys == ()


def test_info_lists_unknown_keys(tmp_path, mobilemoe_cli):
    write_random(tmp_path / "model", SMALL, seed=1, format="bf16")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"zeta": 1, "dtype": "bfloat16"}))
    assert "unknown in config.json               'zeta'" in mobilemoe_cli("info", tmp_path / "model").out
    assert mobilemoe_cli("info", tmp_path / "model", "--json").json["unknown_config_keys"] == ["zeta"]
