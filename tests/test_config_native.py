"""The promise that Python and the native engine judge a config.json alike, and read the same RoPE from it."""

import dataclasses
import json
from pathlib import Path

import pytest

from foreign_configs import FITS, LLAMA3, NEW, READ, REFUSED
from mobilemoe.checkpoint import write_random
from mobilemoe.config import ModelConfig
from mobilemoe.config_keys import OFF_KEYS, SAME_KEYS, SPECIAL_KEYS
from mobilemoe.config_rope import FOREIGN_SCALING
from mobilemoe.engine.native import native
from mobilemoe.errors import ConfigError
from mobilemoe.presets import family_member

CONFIG = family_member(64, vocab_size=96, layers=2)
QUANTIZED = dataclasses.replace(CONFIG, expert_group_axis="in")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    write_random(folder, CONFIG, seed=1, format="int4", group_axis="in")
    return folder


def cases(base: dict) -> list[dict]:
    """Changes to a config.json; most of these are refused."""
    values = [0, 1, True, None, 0.5, [0, 1], {}, {"a": 1}, "silu", "rope", "rms_norm", "sigmoid", "noaux_tc"]
    grid = [{key: value} for key in (*OFF_KEYS, *SAME_KEYS, *SPECIAL_KEYS) for value in values]
    grid += [{key: getattr(CONFIG, name)} for key, name in SAME_KEYS.items()]
    grid += [changes for changes, _ in FITS if 10**400 not in changes.values()]
    without = dict.fromkeys(("rope_theta", "rope_scaling", "torch_dtype"), ...)
    layers = {"layer_types": base["layer_types"]}
    for changes, *_ in (*READ.values(), *REFUSED.values()):
        mixed = (
            layers if changes.get("layer_types") is None else {"layer_types": ["full_attention", "sliding_attention"]}
        )
        grid.append({**without, "dtype": "bfloat16", **changes, **mixed})
    for key in ("rope_parameters", "rope_scaling"):
        for part in ("rope_type", *LLAMA3, "rope_theta", "type", "partial_rotary_factor", *FOREIGN_SCALING):
            grid += [{key: {**NEW, part: value}} for value in (None, 0, -1, 2, "yarn", "llama3", True, [], {})]
            grid.append({key: {name: value for name, value in NEW.items() if name != part}})
        grid += [{key: value} for value in (None, {}, [], 3, "llama3", {"x_attention": NEW}, {"full_attention": NEW})]
    grid += [{"sliding_window": value, "layer_types": types} for value in (None, 5, 8192) for types in (None, [])]
    return grid


def test_python_and_the_engine_judge_alike(folder: Path) -> None:
    written = QUANTIZED.to_dict()
    differ = []
    grid = cases(written)
    for changes in grid:
        raw = {key: value for key, value in (written | changes).items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(raw))
        try:
            ours = ModelConfig.load(folder)
        except ConfigError:
            ours = None
        try:
            native.Engine.open(str(folder), threads=1)
            theirs = "taken"
        except native.NativeError as fault:
            theirs = "taken" if fault.code != "config" else str(fault)
        if (ours is not None) != (theirs == "taken"):
            differ.append((changes, theirs))
    assert len(grid) > 3000
    assert differ == []


@pytest.mark.parametrize("case", READ)
def test_the_engine_computes_with_the_rope_that_python_reads(case: str, folder: Path) -> None:
    """The same weights under the older keys give the same logits, and under another base others."""
    changes, theta, scaling = READ[case]
    base = {key: value for key, value in QUANTIZED.to_dict().items() if not key.startswith("rope")}
    types = ["full_attention", "sliding_attention"] if "sliding_window" in changes else base["layer_types"]
    older = None if scaling is None else {"rope_type": "llama3", **vars(scaling)}
    logits = []
    for rope in (changes, {"rope_theta": theta, "rope_scaling": older}, {"rope_theta": 77.0}):
        raw = base | rope | {"layer_types": types, "sliding_window": changes.get("sliding_window")}
        (folder / "config.json").write_text(json.dumps(raw))
        engine = native.Engine.open(str(folder), threads=1, kv="f32", fp32=True)
        logits.append(engine.forward([(engine.new_sequence(), [1, 2, 3, 4, 5], 1)]))
    assert (logits[0] == logits[1]).all()
    assert (logits[0] != logits[2]).any()
