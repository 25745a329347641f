"""INT4 files take learnt scales as they are, and say so where they cannot."""

import numpy as np
import pytest

from mobilemoe.checkpoint import Checkpoint, int4, save_checkpoint, weights, write_safetensors
from mobilemoe.errors import CheckpointError
from mobilemoe.presets import family_member
from mobilemoe.quant.export import learnt_scales, quantize_learnt, save_learnt

CONFIG = family_member(32, expansion=2, granularity=4, layers=1, vocab_size=64)
EACH_AXIS = pytest.mark.parametrize("axis", ["in", "out"])


def masters() -> dict[str, np.ndarray]:
    """fp32 weights by canonical name."""
    rng = np.random.default_rng(0)
    return {weight.name: rng.standard_normal(weight.shape, np.float32) for weight in weights(CONFIG).values()}


def scales_for(axis, factor=0.8) -> dict[str, np.ndarray]:
    """Learnt for all but attention."""
    found = {}
    for weight in [weight for weight in weights(CONFIG).values() if weight.is_quantizable]:
        if weight.kind == "attention":
            continue
        w = masters()[weight.name]
        w = int4.arrange_experts(w, axis) if weight.storage == "experts" else w
        found[weight.int4_names[1]] = int4.scales(w).astype(np.float32) * np.float32(factor)
    return found


def run_folder(folder, scales):
    """A run's checkpoint: fp32 master weights, a tokenizer file, and the scales beside adapters."""
    folder.mkdir()
    CONFIG.save(folder)
    (folder / "tokenizer.json").write_text("{}")
    state = masters()
    write_safetensors(
        folder / "model.safetensors", {name: ("F32", w.shape) for name, w in state.items()}, state.__getitem__
    )
    extra = scales | {"a.lora_a": np.ones((2, 2), np.float32)}
    write_safetensors(
        folder / "extra.safetensors", {name: ("F32", w.shape) for name, w in extra.items()}, extra.__getitem__
    )
    return folder


@EACH_AXIS
def test_a_runs_scales_are_read_and_written_and_everything_else_is_rounded_to_nearest(tmp_path, axis):
    scales = scales_for(axis)
    source = run_folder(tmp_path / "run", scales)
    found = learnt_scales(source)
    assert found.keys() == scales.keys()
    report = quantize_learnt(source, tmp_path / "int4", found, axis)
    assert 0 < report.kinds["routed"].relative_rms < 0.3
    assert (tmp_path / "int4" / "tokenizer.json").read_text() == "{}"
    save_checkpoint(tmp_path / "nearest", CONFIG, masters().__getitem__, format="int4", group_axis=axis)
    with Checkpoint.open(tmp_path / "int4") as got, Checkpoint.open(tmp_path / "nearest") as nearest:
        assert set(got.verify().values()) == {True}
        for weight in weights(CONFIG).values():
            name = weight.int4_names[1]
            if not weight.is_quantizable or name not in scales:
                np.testing.assert_array_equal(got.weight(weight.name), nearest.weight(weight.name))
                continue
            scale = got.array(name)
            np.testing.assert_array_equal(scale, scales[name].astype(np.float16))
            w = masters()[weight.name]
            w = int4.arrange_experts(w, axis) if weight.storage == "experts" else w
            step = scale.astype(np.float32).repeat(32, axis=-1)
            q = int4.unpack(got.array(weight.int4_names[0]))
            np.testing.assert_array_equal(q, np.clip(np.rint(w / step), -8, 7))
            assert q.min() == -8  # 0.8 of amax / 7.5 clamps


def test_a_scale_that_went_below_zero_is_the_smallest_fp16_number(tmp_path):
    scales = {name: -scale for name, scale in scales_for("in").items()}
    save_learnt(tmp_path / "int4", CONFIG, masters().__getitem__, scales, group_axis="in")
    with Checkpoint.open(tmp_path / "int4") as checkpoint:
        for name in scales:
            assert (checkpoint.array(name) == np.float16(2**-24)).all()


def test_scales_of_the_other_axis_are_refused(tmp_path):
    for learnt, asked in (("in", "out"), ("out", "in")):
        with pytest.raises(CheckpointError, match=f"the group axis '{asked}' asks for"):
            save_learnt(tmp_path / "x", CONFIG, masters().__getitem__, scales_for(learnt), group_axis=asked)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, 7e4])
def test_scales_beyond_fp16_are_refused(tmp_path, value):
    scales = scales_for("in")
    name, scale = next(iter(scales.items()))
    scale[0, 0] = value
    with pytest.raises(CheckpointError, match=name):
        save_learnt(tmp_path / "x", CONFIG, masters().__getitem__, scales, group_axis="in")


def test_a_checkpoint_without_learnt_scales_has_none_and_a_damaged_file_is_refused(tmp_path):
    assert learnt_scales(tmp_path) == {}
    assert learnt_scales(run_folder(tmp_path / "run", {})) == {}
    path = run_folder(tmp_path / "hurt", scales_for("in")) / "extra.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        learnt_scales(path.parent)
