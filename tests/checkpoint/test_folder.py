"""Folders come back as they were saved, whatever the format, and say exactly what is wrong when something is."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from mobilemoe.checkpoint import (
    Checkpoint,
    convert,
    int4,
    save_checkpoint,
    tensor_table,
    weights,
    write_random,
    write_safetensors,
)
from mobilemoe.checkpoint.container import SafetensorsFile
from mobilemoe.checkpoint.writing import stored_config
from mobilemoe.errors import CheckpointError, UsageError
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


def rewrite(folder: Path, change) -> None:
    """Replaces the tensors of a BF16 folder by what `change` makes of them: {name: (dtype, array)}."""
    path = folder / "model.safetensors"
    with SafetensorsFile(path) as file:
        tensors = {name: (info.dtype, file.array(name).copy()) for name, info in file.tensors.items()}
    change(tensors)
    write_safetensors(path, {name: (dtype, a.shape) for name, (dtype, a) in tensors.items()}, lambda n: tensors[n][1])


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    text = str(caught.value)
    assert str(folder) in text
    assert len(text.splitlines()) == 1
    return text


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


def split_experts(given):
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


def test_converting_int4_to_its_own_axis_copies_every_byte(tmp_path):
    for axis in ("in", "out"):
        write_random(tmp_path / axis, MICRO, seed=3, format="int4", group_axis=axis)
        (tmp_path / axis / "tokenizer.json").write_text("{}")
        (tmp_path / axis / "other.txt").write_text("")
        report = convert(tmp_path / axis, tmp_path / f"{axis}2", format="int4", group_axis=axis)
        assert report.lossless
        before, after = ((tmp_path / name / "model.safetensors").read_bytes() for name in (axis, f"{axis}2"))
        assert before == after
        assert {path.name for path in (tmp_path / f"{axis}2").iterdir()} == {
            "config.json",
            "model.safetensors",
            "tokenizer.json",
        }


def test_changing_the_axis_requantises_the_routed_experts_alone(tmp_path):
    write_random(tmp_path / "out", MICRO, seed=3, format="int4", group_axis="out")
    report = convert(tmp_path / "out", tmp_path / "in", format="int4", group_axis="in")
    assert {kind for kind, error in report.kinds.items() if error.max_abs} == {"routed"}
    assert 0.03 < report.kinds["routed"].relative_rms < 0.12
    assert not report.lossless
    with Checkpoint.open(tmp_path / "in") as checkpoint:
        assert checkpoint.config.expert_group_axis == "in"


def test_int4_to_bf16_reports_what_it_loses(tmp_path):
    write_random(tmp_path / "m", MICRO, seed=3, format="int4")
    report = convert(tmp_path / "m", tmp_path / "b", format="bf16")
    assert not report.lossless
    for kind in ("embedding", "attention", "routed", "shared"):
        assert 1e-4 < report.kinds[kind].relative_rms < 2**-8
        assert 0 < report.kinds[kind].max_abs < 2**-9 * 0.2
    assert report.kinds["router"].max_abs == report.kinds["norm"].max_abs == 0
    # The numbers are those of the files: bf16 rounding of the exact INT4 values.
    with Checkpoint.open(tmp_path / "m") as source, Checkpoint.open(tmp_path / "b") as result:
        w = source.weight("model.embed_tokens.weight")
        np.testing.assert_array_equal(result.weight("model.embed_tokens.weight"), int4.from_bf16(int4.to_bf16(w)))
        difference = result.weight("model.embed_tokens.weight") - w
        assert report.kinds["embedding"].max_abs == np.abs(difference).max()
        want = np.linalg.norm(difference) / np.linalg.norm(w)
        assert report.kinds["embedding"].relative_rms == pytest.approx(want, rel=1e-5)


def test_bf16_to_int4_and_on_is_stable(tmp_path):
    write_random(tmp_path / "b", SHAPES["untied softmax, no shared expert"], seed=3, format="bf16")
    report = convert(tmp_path / "b", tmp_path / "q", format="int4", group_axis="in")
    assert 0.05 < report.kinds["head"].relative_rms < 0.12
    assert convert(tmp_path / "q", tmp_path / "q2", format="int4", group_axis="in").lossless


def test_scales_that_are_not_numbers_are_loaded_but_not_copied(tmp_path):
    write_random(tmp_path / "m", MICRO, seed=3, format="int4")
    name = "model.layers.0.self_attn.q_proj"
    scale = np.full((64, 2), np.nan, np.float16)
    rewrite(tmp_path / "m", lambda tensors: tensors.update({f"{name}.weight_scale": ("F16", scale)}))
    with Checkpoint.open(tmp_path / "m") as checkpoint:
        assert np.isnan(checkpoint.weight(f"{name}.weight")).all()
    with pytest.raises(CheckpointError, match=r"q_proj\.weight_scale' holds NaN or infinity"):
        convert(tmp_path / "m", tmp_path / "n", format="int4")
    assert not (tmp_path / "n").exists()


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
