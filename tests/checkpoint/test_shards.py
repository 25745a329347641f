"""A model in several files is the same model, and an index that does not fit them is refused by name."""

import json
from pathlib import Path

import numpy as np
import pytest

from checkpoint_models import MICRO, logical, refusal
from mobilemoe.checkpoint import (
    Checkpoint,
    save_checkpoint,
)
from mobilemoe.checkpoint.container import SafetensorsFile


@pytest.mark.parametrize("format", ["int4", "bf16"])
def test_shards_hold_the_same_model(tmp_path, format):
    given = logical(MICRO)
    save_checkpoint(tmp_path / "one", MICRO, given.__getitem__, format=format)
    save_checkpoint(tmp_path / "many", MICRO, given.__getitem__, format=format, shard_bytes=40_000)
    with Checkpoint.open(tmp_path / "one") as one, Checkpoint.open(tmp_path / "many") as many:
        assert len(many.files) > 3
        assert many.files[0].name == f"model-00001-of-{len(many.files):05d}.safetensors"
        for name in one.names:
            np.testing.assert_array_equal(one.weight(name), many.weight(name))
        assert set(many.verify().values()) == {True}
        assert "model.safetensors.index.json" in many.verify()


@pytest.fixture
def sharded(tmp_path):
    save_checkpoint(tmp_path / "m", MICRO, logical(MICRO).__getitem__, format="bf16", shard_bytes=40_000)
    return tmp_path / "m"


def edit_index(folder: Path, change) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_a_missing_shard_is_named(sharded):
    shards = sorted(sharded.glob("*.safetensors"))
    shards[0].unlink()
    assert f"{shards[0].name} does not exist" in refusal(sharded)


def test_a_tensor_in_two_shards_is_named(sharded):
    shards = sorted(sharded.glob("*.safetensors"))
    shards[1].write_bytes(shards[0].read_bytes())
    with SafetensorsFile(shards[0]) as file:
        name = next(iter(file.tensors))
    text = refusal(sharded)
    assert "repeats tensors of another shard" in text
    assert name in text


@pytest.mark.parametrize("shard", ["../x.safetensors", "a/b.safetensors", "a\\b.safetensors", "x.bin", 3, ""])
def test_an_index_cannot_lead_elsewhere(sharded, shard):
    edit_index(sharded, lambda names: names.update({"model.norm.weight": shard}))
    assert "not a file of its folder" in refusal(sharded)


def test_an_index_that_does_not_fit_is_refused(sharded):
    edit_index(sharded, lambda names: names.pop("model.norm.weight"))
    assert "not in the index: 'model.norm.weight'" in refusal(sharded)
