"""A checkpoint in another format: unchanged parts stay equal byte for byte, and what is lost is reported."""

import numpy as np
import pytest

from checkpoint_models import MICRO, SHAPES, rewrite
from conversions import BF16, INT4_IN, INT4_OUT
from mobilemoe.checkpoint import (
    Checkpoint,
    convert,
    int4,
    write_random,
)
from mobilemoe.errors import CheckpointError


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


def test_changing_the_axis_requantises_the_routed_experts_alone(conversion, tmp_path):
    write_random(tmp_path / "out", MICRO, seed=3, format="int4", group_axis="out")
    report = convert(tmp_path / "out", tmp_path / "in", format="int4", group_axis="in")
    conversion(INT4_OUT, INT4_IN, report)
    assert {kind for kind, error in report.kinds.items() if error.max_abs} == {"routed"}
    assert 0.03 < report.kinds["routed"].relative_rms < 0.12
    assert not report.lossless
    with Checkpoint.open(tmp_path / "in") as checkpoint:
        assert checkpoint.config.expert_group_axis == "in"


def test_int4_to_bf16_reports_what_it_loses(conversion, tmp_path):
    write_random(tmp_path / "m", MICRO, seed=3, format="int4")
    report = convert(tmp_path / "m", tmp_path / "b", format="bf16")
    conversion(INT4_IN, BF16, report)
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


def test_bf16_to_int4_and_on_is_stable(conversion, tmp_path):
    write_random(tmp_path / "b", SHAPES["untied softmax, no shared expert"], seed=3, format="bf16")
    report = convert(tmp_path / "b", tmp_path / "q", format="int4", group_axis="in")
    conversion(BF16, INT4_IN, report)
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
