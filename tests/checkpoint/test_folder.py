"""Folders come back as they were saved, whatever the format, and say exactly what is wrong when something is."""

import dataclasses
import json

import numpy as np
import pytest

from checkpoint_models import EXPERTS, MICRO, SHAPES, logical, refusal, rewrite, split_experts
from mobilemoe.checkpoint import (
    Checkpoint,
    convert,
    int4,
    save_checkpoint,
    tensor_table,
    write_random,
)
from mobilemoe.checkpoint.folder import ENGINE_FILE
from mobilemoe.checkpoint.writing import stored_config
from mobilemoe.errors import CheckpointError, UsageError


@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_comes_back_exactly(tmp_path, shape):
    config = SHAPES[shape]
    want = logical(config)
    save_checkpoint(tmp_path / "m", config, want.__getitem__, format="bf16")
    with Checkpoint.open(tmp_path / "m") as checkpoint:
        assert checkpoint.config == config
        assert checkpoint.names == tuple(want)
        for name, w in want.items():
            np.testing.assert_array_equal(checkpoint.weight(name), w)
        assert checkpoint.verify() == {"model.safetensors": True, "config.json": True}


@pytest.mark.parametrize("axis", ["in", "out"])
@pytest.mark.parametrize("shape", SHAPES)
def test_int4_comes_back_as_the_rounding_of_each_group(tmp_path, shape, axis):
    config = SHAPES[shape]
    given = logical(config)
    save_checkpoint(tmp_path / "m", config, given.__getitem__, format="int4", group_axis=axis)
    with Checkpoint.open(tmp_path / "m") as checkpoint:
        assert checkpoint.config == dataclasses.replace(config, expert_group_axis=axis)
        assert set(checkpoint.tensors) == set(tensor_table(checkpoint.config))
        for name, weight in checkpoint.weights.items():
            w = given[name]
            if weight.storage == "experts" and axis == "in":
                w = int4.dequantize(*int4.quantize(w.swapaxes(1, 2).copy())).swapaxes(1, 2)
            elif weight.is_quantizable:
                w = int4.dequantize(*int4.quantize(w))
            np.testing.assert_array_equal(checkpoint.weight(name), w)
            assert checkpoint.weight(name).dtype == np.float32


def test_gate_is_the_first_half_and_inputs_come_first(tmp_path):
    """Stored bytes against spec 3.1, read without our own unpacking."""
    given = logical(MICRO)
    width = MICRO.intermediate_size
    gate_up = np.zeros((MICRO.num_local_experts, 64, 2 * width), np.float32)
    gate_up[1, 3, width] = 7.5  # the first up column of input 3
    given[f"{EXPERTS}.gate_up_proj"] = gate_up
    for axis, at in (("out", (1, 3, width // 2)), ("in", (1, width, 1))):
        save_checkpoint(tmp_path / axis, MICRO, given.__getitem__, format="int4", group_axis=axis)
        with Checkpoint.open(tmp_path / axis) as checkpoint:
            packed = checkpoint.array(f"{EXPERTS}.gate_up_qweight")
            assert np.argwhere(packed).tolist() == [list(at)]
            assert packed[at] == (0x07 if axis == "out" else 0x70)


def test_every_missing_and_unknown_tensor_is_reported(tmp_path):
    save_checkpoint(tmp_path / "m", MICRO, logical(MICRO).__getitem__, format="bf16")

    def change(tensors):
        for layer in (0, 1):
            for letter in "qkv":
                tensors[f"model.layers.{layer}.attn.{letter}"] = tensors.pop(
                    f"model.layers.{layer}.self_attn.{letter}_proj.weight"
                )

    rewrite(tmp_path / "m", change)
    text = refusal(tmp_path / "m")
    assert "missing tensors: 'model.layers.0.self_attn.k_proj.weight', " in text
    assert "unknown tensors: 'model.layers.0.attn.k', " in text
    assert text.count("and 2 more") == 2


def test_a_wrong_shape_or_dtype_is_reported(tmp_path):
    save_checkpoint(tmp_path / "m", MICRO, logical(MICRO).__getitem__, format="bf16")
    rewrite(tmp_path / "m", lambda tensors: tensors.update({"model.norm.weight": ("I16", np.zeros(64, np.int16))}))
    assert "'model.norm.weight' is I16 [64], but config.json asks for BF16 [64]" in refusal(tmp_path / "m")
    rewrite(tmp_path / "m", lambda tensors: tensors.update({"model.norm.weight": ("BF16", np.zeros(63, np.uint16))}))
    assert "'model.norm.weight' is BF16 [63]" in refusal(tmp_path / "m")


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_local_experts"])
def test_false_counts_in_the_config_cost_nothing(tmp_path, key):
    save_checkpoint(tmp_path / "m", MICRO, logical(MICRO).__getitem__, format="bf16")
    path = tmp_path / "m" / "config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "layer_types": None, key: 10**9}))
    assert "config.json" in refusal(tmp_path / "m")


def test_folders_without_their_parts_are_refused(tmp_path):
    assert "not a folder" in refusal(tmp_path / "none")
    MICRO.save(tmp_path)
    assert "model.safetensors does not exist" in refusal(tmp_path)
    (tmp_path / ENGINE_FILE).touch()
    assert "holds an engine file (model.mobilemoe), which only the native engine reads" in refusal(tmp_path)


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_bf16_folders_may_hold_other_floats(tmp_path, dtype):
    given = logical(MICRO)
    save_checkpoint(tmp_path / "m", MICRO, given.__getitem__, format="bf16")
    kind = {"F32": np.float32, "F16": np.float16}[dtype]
    rewrite(tmp_path / "m", lambda t: t.update({n: (dtype, w.astype(kind)) for n, w in given.items()}))
    with Checkpoint.open(tmp_path / "m") as checkpoint:
        for name, w in given.items():
            np.testing.assert_array_equal(checkpoint.weight(name), w.astype(kind).astype(np.float32))


def test_a_bf16_router_is_accepted(tmp_path):
    given = logical(MICRO)
    save_checkpoint(tmp_path / "m", MICRO, given.__getitem__, format="bf16")
    name = "model.layers.0.feed_forward.router.weight"
    rewrite(tmp_path / "m", lambda tensors: tensors.update({name: ("BF16", int4.to_bf16(given[name]))}))
    with Checkpoint.open(tmp_path / "m") as checkpoint:
        np.testing.assert_array_equal(checkpoint.weight(name), given[name])


def test_one_tensor_per_expert_is_the_same_model(tmp_path):
    given = logical(MICRO)
    save_checkpoint(tmp_path / "m", MICRO, given.__getitem__, format="bf16")
    rewrite(tmp_path / "m", split_experts(given))
    with Checkpoint.open(tmp_path / "m") as checkpoint:
        for name, w in given.items():
            np.testing.assert_array_equal(checkpoint.weight(name), w)
    assert convert(tmp_path / "m", tmp_path / "fused", format="bf16").lossless


def test_a_missing_expert_is_named(tmp_path):
    given = logical(MICRO)
    save_checkpoint(tmp_path / "m", MICRO, given.__getitem__, format="bf16")
    rewrite(tmp_path / "m", split_experts(given))
    rewrite(tmp_path / "m", lambda tensors: tensors.pop(f"{EXPERTS}.3.up_proj.weight"))
    assert f"missing tensors: '{EXPERTS}.3.up_proj.weight'; unknown tensors: none" in refusal(tmp_path / "m")


def test_a_repeated_tied_head_must_equal_the_embedding(tmp_path):
    given = logical(MICRO)
    save_checkpoint(tmp_path / "m", MICRO, given.__getitem__, format="bf16")
    embedding = int4.to_bf16(given["model.embed_tokens.weight"])
    rewrite(tmp_path / "m", lambda tensors: tensors.update({"lm_head.weight": ("BF16", embedding)}))
    with Checkpoint.open(tmp_path / "m") as checkpoint:
        assert "lm_head.weight" not in checkpoint.names
    embedding = embedding.copy()
    embedding[5, 6] ^= 1
    rewrite(tmp_path / "m", lambda tensors: tensors.update({"lm_head.weight": ("BF16", embedding)}))
    assert "lm_head.weight differs" in refusal(tmp_path / "m")


@pytest.mark.parametrize("format", ["int4", "bf16"])
def test_a_failing_save_leaves_nothing_behind(tmp_path, format):
    given = logical(MICRO)

    def weight(name):
        if name == "model.layers.1.self_attn.v_proj.weight":
            raise RuntimeError("no")
        return given[name]

    with pytest.raises(RuntimeError, match="no"):
        save_checkpoint(tmp_path / "m", MICRO, weight, format=format, shard_bytes=40_000)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "m").mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        save_checkpoint(tmp_path / "m", MICRO, logical(MICRO).__getitem__, format="bf16")
    assert list((tmp_path / "m").iterdir()) == []


def test_what_cannot_be_saved_is_refused_by_name(tmp_path):
    given = logical(MICRO)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is given as \[63\]"):
        save_checkpoint(tmp_path / "m", MICRO, {**given, "model.norm.weight": np.ones(63)}.__getitem__, format="bf16")
    given[f"{EXPERTS}.down_proj"][0, 0, 0] = np.nan
    with pytest.raises(CheckpointError, match=f"{EXPERTS}.down_proj holds weights that are not finite"):
        save_checkpoint(tmp_path / "m", MICRO, given.__getitem__, format="int4")
    for wrong in ({"format": "fp8"}, {"format": "int4", "group_axis": "both"}):
        with pytest.raises(UsageError):
            save_checkpoint(tmp_path / "m", MICRO, given.__getitem__, **wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name", ["model.norm.weight", "layers.1.feed_forward.router.weight", "layers.0.feed_forward.expert_bias", "q_proj"]
)
@pytest.mark.parametrize("format", ["int4", "bf16"])
def test_what_is_not_a_number_is_refused_by_name_when_it_is_written(tmp_path, name, value, format):
    write_random(tmp_path / "m", MICRO, seed=3, format="bf16")
    with Checkpoint.open(tmp_path / "m") as checkpoint:
        full = next(stored for stored in checkpoint.names if name in stored)

        def weight(wanted):
            w = checkpoint.weight(wanted)
            if wanted == full:
                w.reshape(-1)[-1] = value
            return w

        with pytest.raises(CheckpointError, match=full):
            save_checkpoint(tmp_path / "n", checkpoint.config, weight, format=format)
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize("format", ["int4", "bf16"])
def test_random_checkpoints_depend_on_the_seed_alone(tmp_path, format):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_random(tmp_path / name, MICRO, seed=seed, format=format)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c
    with Checkpoint.open(tmp_path / "a") as checkpoint:
        for name, weight in checkpoint.weights.items():
            w = checkpoint.weight(name)
            if weight.is_quantizable:
                assert 0.018 < w.std() < 0.022
                assert abs(w.mean()) < 0.003
            elif weight.kind == "norm":
                assert abs(w.mean() - 1) < 0.1
            else:
                assert w.std() > 0.03


def test_a_changed_config_is_found(tmp_path):
    write_random(tmp_path / "m", MICRO, seed=1, format="int4")
    path = tmp_path / "m" / "config.json"
    path.write_text(path.read_text() + " ")
    with Checkpoint.open(tmp_path / "m") as checkpoint:
        assert checkpoint.verify() == {"model.safetensors": True, "config.json": False}


def test_an_unknown_weight_is_refused(tmp_path):
    write_random(tmp_path / "m", MICRO, seed=1, format="int4")
    with Checkpoint.open(tmp_path / "m") as checkpoint:
        assert checkpoint.config == stored_config(MICRO, "int4", "in")
        with pytest.raises(CheckpointError, match="no weight"):
            checkpoint.weight("lm_head.weight")
        with pytest.raises(CheckpointError, match="no tensor"):
            checkpoint.array("lm_head.weight")
