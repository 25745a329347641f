"""INT4 goes to MLX as it is, under the names of the architecture of MLX-LM that computes the model."""

import dataclasses
import json

import numpy as np
import pytest

from conversions import INT4_IN, mlx_folder
from mobilemoe.checkpoint import Checkpoint, SafetensorsFile, write_random
from mobilemoe.config_rope import RopeScaling
from mobilemoe.errors import UsageError
from mobilemoe.export.mlx import mlx_tensors, write_mlx
from mobilemoe.export.stock_folder import StockWeights
from mobilemoe.hub import find_model
from model_configs import GROUPED_QUERIES

CASES = {
    "plain RoPE": GROUPED_QUERIES,
    "scaled RoPE": dataclasses.replace(GROUPED_QUERIES, rope_scaling=RopeScaling()),
    "own head": dataclasses.replace(GROUPED_QUERIES, tie_word_embeddings=False, qk_norm="head_weight"),
    "no shared expert": dataclasses.replace(GROUPED_QUERIES, rope_scaling=RopeScaling(), intermediate_size_mlp=0),
}


def make(folder, config=GROUPED_QUERIES):
    write_random(folder, config, seed=1, format="int4", group_axis="in")
    return folder


def affine(words, scales, biases):
    """What MLX makes of its affine layout: eight values in a word, the first lowest, each times scale plus bias."""
    w = np.empty((*words.shape, 8), np.float64)
    for at in range(8):
        w[..., at] = words // 16**at % 16
    groups = w.reshape(*scales.shape, 32)
    return (groups * scales[..., None] + biases[..., None]).reshape(*words.shape[:-1], -1)


@pytest.mark.parametrize("model", [*CASES, "nano"])
def test_every_weight_is_the_same_bit_for_bit(model, conversion, tmp_path):
    folder = find_model("nano") if model == "nano" else make(tmp_path / "ours", CASES[model])
    report = write_mlx(folder, tmp_path / "theirs")
    assert report.lossless
    with Checkpoint.open(folder) as source, SafetensorsFile(tmp_path / "theirs" / "model.safetensors") as file:
        conversion(INT4_IN, mlx_folder(source.config), report)
        stock, layout = StockWeights(source), mlx_tensors(source.config)
        for name, tensor in layout.items():
            stem, stored = name.removesuffix("weight"), file.array(name)
            if stored.dtype == np.uint32:
                stored = affine(stored, *(file.array(f"{stem}{kind}").astype(float) for kind in ("scales", "biases")))
            assert np.array_equal(stored, stock.floats(tensor)), name
        assert file.verify()


def test_scaled_rope_takes_the_architecture_that_reads_it(tmp_path):
    for case, kind, experts, has_head in (
        ("plain RoPE", "glm4_moe", "switch_mlp", True),
        ("scaled RoPE", "dots1", "experts", False),
    ):
        write_mlx(make(tmp_path / f"ours {kind}", CASES[case]), tmp_path / kind)
        config = json.loads((tmp_path / kind / "config.json").read_text())
        assert config["model_type"] == kind
        assert config["tie_word_embeddings"] is not has_head
        assert config["quantization"] == {"group_size": 32, "bits": 4, "mode": "affine"}
        with SafetensorsFile(tmp_path / kind / "model.safetensors") as file:
            assert file.tensors[f"model.layers.0.mlp.{experts}.gate_proj.weight"].shape == (6, 32, 8)
            assert ("lm_head.weight" in file.tensors) is has_head


def test_what_mlx_does_not_compute_or_hold_is_refused(tmp_path):
    for made, config, said in (
        ({"format": "bf16"}, GROUPED_QUERIES, "mobilemoe quantize"),
        ({"format": "int4", "group_axis": "out"}, GROUPED_QUERIES, "mobilemoe convert"),
        ({"format": "int4"}, dataclasses.replace(GROUPED_QUERIES, num_experts_per_tok=1), "single expert"),
        ({"format": "int4"}, dataclasses.replace(GROUPED_QUERIES, router_score="softmax"), "router_score"),
    ):
        folder = tmp_path / said
        write_random(folder, config, seed=1, **made)
        with pytest.raises(UsageError, match=said):
            write_mlx(folder, tmp_path / "theirs")
        assert not (tmp_path / "theirs").exists()
