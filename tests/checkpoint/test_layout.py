"""The tensor table is the one of spec 3.1, 3.2 and 3.5."""

import math

import pytest

from mobilemoe import accounting
from mobilemoe.checkpoint import SafetensorsFile, tensor_table, weights, write_random
from mobilemoe.checkpoint.container import payload_bytes
from mobilemoe.checkpoint.writing import stored_config
from mobilemoe.errors import CheckpointError
from mobilemoe.presets import PRESETS, family_member


def table(name: str, format: str, axis: str = "out"):
    return tensor_table(stored_config(PRESETS[name], format, axis))


@pytest.mark.parametrize("axis", ["in", "out"])
def test_s_has_443_tensors_and_the_published_size(axis):
    tensors = table("S", "int4", axis)
    assert len(tensors) == 443
    assert sum(map(payload_bytes, tensors.values())) == 713_863_008


def test_s_is_laid_out_as_published():
    tensors = table("S", "int4")
    ffn = "model.layers.19.feed_forward"
    assert tensors["model.embed_tokens.qweight"] == ("U8", (128_256, 384))
    assert tensors["model.embed_tokens.weight_scale"] == ("F16", (128_256, 24))
    assert tensors["model.norm.weight"] == ("BF16", (768,))
    assert tensors["model.layers.0.self_attn.k_proj.qweight"] == ("U8", (256, 384))
    assert tensors[f"{ffn}.router.weight"] == ("F32", (60, 768))
    assert tensors[f"{ffn}.expert_bias"] == ("BF16", (60,))
    assert tensors[f"{ffn}.experts.gate_up_qweight"] == ("U8", (60, 768, 384))
    assert tensors[f"{ffn}.experts.gate_up_scale"] == ("F16", (60, 768, 24))
    assert tensors[f"{ffn}.experts.down_qweight"] == ("U8", (60, 384, 384))
    assert tensors[f"{ffn}.experts.down_scale"] == ("F16", (60, 384, 24))
    assert tensors[f"{ffn}.shared_expert.down_proj.weight_scale"] == ("F16", (768, 48))


def test_our_own_axis_is_stored_transposed():
    tensors = table("M", "int4", "in")
    stem = "model.layers.0.feed_forward.experts"
    assert tensors[f"{stem}.gate_up_qweight"] == ("U8", (60, 1024, 512))
    assert tensors[f"{stem}.gate_up_scale"] == ("F16", (60, 1024, 32))
    assert tensors[f"{stem}.down_qweight"] == ("U8", (60, 1024, 256))
    assert tensors[f"{stem}.down_scale"] == ("F16", (60, 1024, 16))


@pytest.mark.parametrize("name", PRESETS)
def test_sizes_and_counts_are_those_of_accounting(name):
    config = PRESETS[name]
    for axis in ("in", "out"):
        assert sum(map(payload_bytes, table(name, "int4", axis).values())) == accounting.int4_file_bytes(config)
    assert sum(map(payload_bytes, table(name, "bf16").values())) == accounting.bf16_file_bytes(config)
    total = sum(math.prod(weight.shape) for weight in weights(config).values())
    assert total == accounting.total_parameters(config)


def test_the_bf16_layout_keeps_the_router_in_fp32():
    tensors = table("S", "bf16")
    assert {name.split(".")[-2] for name, (dtype, _) in tensors.items() if dtype == "F32"} == {"router"}
    assert tensors["model.layers.3.feed_forward.experts.gate_up_proj"] == ("BF16", (60, 768, 768))
    assert "lm_head.weight" not in tensors


def test_shapes_outside_the_family():
    olmoe = table("olmoe-1b-7b", "int4")
    assert olmoe["lm_head.qweight"] == ("U8", (50_304, 1024))
    assert olmoe["lm_head.weight_scale"] == ("F16", (50_304, 64))
    assert olmoe["model.layers.0.self_attn.q_norm.weight"] == ("BF16", (2048,))
    assert not any("expert_bias" in name or "shared_expert" in name for name in olmoe)
    dense = table("mobilellm-pro", "int4")
    assert dense["model.layers.0.feed_forward.down_proj.qweight"] == ("U8", (1280, 3072))
    assert not any("router" in name or "experts" in name for name in dense)
    normed = tensor_table(family_member(64, vocab_size=96, qk_norm="head_weight"))
    assert normed["model.layers.0.self_attn.k_norm.weight"] == ("BF16", (32,))


def test_widths_that_do_not_fill_groups_are_refused_by_name():
    narrow = family_member(64, granularity=16, vocab_size=96)  # experts of width 16
    tensor_table(stored_config(narrow, "int4", "out"))
    with pytest.raises(CheckpointError, match=r"down_proj .* 16, not a multiple of 32"):
        tensor_table(stored_config(narrow, "int4", "in"))


@pytest.mark.slow
def test_a_written_s_has_the_published_size(tmp_path):
    write_random(tmp_path / "S", PRESETS["S"], seed=0, format="int4", group_axis="out")
    with SafetensorsFile(tmp_path / "S" / "model.safetensors") as file:
        assert len(file.tensors) == 443
        assert sum(info.end - info.start for info in file.tensors.values()) == 713_863_008
        assert file.verify() is True
