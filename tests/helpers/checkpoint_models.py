"""Small checkpoints for the tests of folders: their weights, changes to their files, and the message of the refusal."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mobilemoe.checkpoint import (
    Checkpoint,
    int4,
    weights,
    write_safetensors,
)
from mobilemoe.checkpoint.container import SafetensorsFile
from mobilemoe.errors import CheckpointError
from mobilemoe.presets import family_member

MICRO = family_member(64, expansion=2, granularity=4, layers=2, vocab_size=96)
SHAPES = {
    "family": MICRO,
    "dense": family_member(64, expansion=1, layers=2, vocab_size=96),
    "untied softmax, no shared expert": dataclasses.replace(
        MICRO, tie_word_embeddings=False, router_score="softmax", intermediate_size_mlp=0, qk_norm="projection_weight"
    ),
}
EXPERTS = "model.layers.1.feed_forward.experts"


def logical(config, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights that bf16 holds exactly."""
    rng = np.random.default_rng(seed)
    return {
        name: int4.from_bf16(int4.to_bf16(rng.standard_normal(weight.shape).astype(np.float32)))
        for name, weight in weights(config).items()
    }


def assert_same_tensors(left: Path, right: Path) -> None:
    """Two folders hold the same model, every tensor byte for byte."""
    with Checkpoint.open(left) as before, Checkpoint.open(right) as after:
        assert before.config == after.config
        assert before.tensors.keys() == after.tensors.keys()
        for name in before.tensors:
            one, other = before.array(name), after.array(name)
            assert one.dtype == other.dtype
            assert one.tobytes() == other.tobytes(), name


def rewrite(folder: Path, change) -> None:
    """Replaces the tensors of a BF16 folder by what `change` makes of them: {name: (dtype, array)}."""
    path = folder / "model.safetensors"
    with SafetensorsFile(path) as file:
        tensors = {name: (info.dtype, file.array(name).copy()) for name, info in file.tensors.items()}
    change(tensors)
    write_safetensors(path, {name: (dtype, a.shape) for name, (dtype, a) in tensors.items()}, lambda n: tensors[n][1])


def split_experts(given: dict[str, np.ndarray]):
    """A change for `rewrite` of a folder with MICRO's weights `given`: one matrix [out, in] for each expert."""

    def change(tensors):
        for layer in range(MICRO.num_hidden_layers):
            stem = f"model.layers.{layer}.feed_forward.experts"
            for part in ("gate_up", "down"):
                del tensors[f"{stem}.{part}_proj"]
            for expert in range(MICRO.num_local_experts):
                gate, up = np.split(given[f"{stem}.gate_up_proj"][expert].T, 2)
                down = given[f"{stem}.down_proj"][expert].T
                for part, w in (("gate", gate), ("up", up), ("down", down)):
                    tensors[f"{stem}.{expert}.{part}_proj.weight"] = ("BF16", int4.to_bf16(w))

    return change


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    text = str(caught.value)
    assert str(folder) in text
    assert len(text.splitlines()) == 1
    return text
