"""A model exported as Glm4Moe is the same function in transformers, with no code of ours."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch

from conversions import BF16, GLM4MOE, INT4_IN, INT4_OUT, relative_rms
from mobilemoe.checkpoint import Checkpoint, SafetensorsFile, write_random
from mobilemoe.config import FULL, SLIDING
from mobilemoe.config_rope import RopeScaling
from mobilemoe.errors import CheckpointError, UsageError
from mobilemoe.export.gguf import write_gguf
from mobilemoe.export.glm4moe import write_glm4moe
from mobilemoe.hub import find_model
from mobilemoe.model import MobileMoE
from mobilemoe.tokenizer import Tokenizer
from model_configs import GROUPED_QUERIES

transformers = pytest.importorskip("transformers")


def scaling(factor: float, original: int, low: float, high: float) -> RopeScaling:
    return RopeScaling(
        factor=factor, original_max_position_embeddings=original, low_freq_factor=low, high_freq_factor=high
    )


SHARED = dataclasses.replace(GROUPED_QUERIES, vocab_size=128, max_position_embeddings=256, eos_token_id=(5, 7))
DENSE = {"ffn_type": "dense", "intermediate_size_mlp": 0, "num_local_experts": 0, "num_experts_per_tok": 0}
CASES = {
    "shared": SHARED,
    "no shared expert": dataclasses.replace(SHARED, intermediate_size_mlp=0),
    "scaled RoPE": dataclasses.replace(SHARED, rope_scaling=scaling(16.0, 64, 1.0, 1.0)),
    "blended RoPE": dataclasses.replace(SHARED, rope_scaling=scaling(8.0, 64, 1.0, 4.0)),
    "learnt norms": dataclasses.replace(SHARED, qk_norm="head_weight"),
    "own head": dataclasses.replace(SHARED, tie_word_embeddings=False),
    "weights not normalised": dataclasses.replace(SHARED, norm_topk_prob=False, routed_scaling_factor=1.5),
}


@pytest.mark.parametrize("name", CASES)
def test_transformers_computes_the_same_logits(name, conversion, tmp_path):
    write_random(tmp_path / "ours", CASES[name], seed=1, format="bf16")
    report = write_glm4moe(tmp_path / "ours", tmp_path / "theirs")
    assert report.lossless
    conversion(BF16, GLM4MOE, report)
    theirs, notes = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "theirs", dtype=torch.float32, output_loading_info=True
    )
    assert {kind: names for kind, names in notes.items() if names} == {}  # no tensor is missing or left over
    tokens_BT = torch.from_numpy(np.random.default_rng(2).integers(0, 128, (2, 150)))
    ours = MobileMoE(CASES[name]).eval()
    with Checkpoint.open(tmp_path / "ours") as checkpoint:
        ours.load_weights(checkpoint.weight)
    with torch.no_grad():
        ours_BTV, theirs_BTV = ours(tokens_BT), theirs(tokens_BT).logits
    assert (ours_BTV - theirs_BTV).abs().max() < 2e-5 * ours_BTV.abs().max()
    conversion(BF16, GLM4MOE, relative_rms(theirs_BTV, ours_BTV), "logits", "transformers")
    assert theirs.config.eos_token_id == [5, 7]


def test_the_head_is_there_for_runtimes_that_do_not_tie_it_to_the_embedding(tmp_path):
    write_random(tmp_path / "ours", SHARED, seed=1, format="bf16")
    write_glm4moe(tmp_path / "ours", tmp_path / "theirs")
    with SafetensorsFile(tmp_path / "theirs" / "model.safetensors") as file:
        head, embedding = (file.array(f"{name}.weight") for name in ("lm_head", "model.embed_tokens"))
        assert np.array_equal(head, embedding)


@pytest.mark.parametrize(("axis", "source"), [("in", INT4_IN), ("out", INT4_OUT)])
def test_int4_weights_are_rounded_and_the_error_is_said(axis, source, conversion, tmp_path):
    write_random(tmp_path / "ours", SHARED, seed=1, format="int4", group_axis=axis)
    report = write_glm4moe(tmp_path / "ours", tmp_path / "theirs")
    conversion(source, GLM4MOE, report)
    assert not report.lossless
    assert 1e-4 < report.kinds["routed"].relative_rms < 2**-8
    assert report.kinds["router"].max_abs == 0
    with SafetensorsFile(tmp_path / "theirs" / "model.safetensors") as file:
        assert file.verify()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"ffn_type": "dense", "intermediate_size_mlp": 0, "num_local_experts": 0, "num_experts_per_tok": 0},
            "ffn_type",
        ),
        ({"router_score": "softmax"}, "router_score is 'softmax'"),
        ({"qk_norm": "none"}, "qk_norm is 'none'"),
        ({"qk_norm": "projection_weight"}, "qk_norm"),
        ({"attention_scale": 0.5}, "attention_scale is 0.5"),
        ({"sliding_window": 8, "layer_types": (FULL, SLIDING)}, "sliding windows"),
        ({"intermediate_size_mlp": 48}, "must be a multiple"),
    ],
)
def test_what_glm4moe_does_not_compute_is_refused_by_name(change, reason, tmp_path):
    write_random(tmp_path / "ours", dataclasses.replace(SHARED, **change), seed=1, format="bf16")
    with pytest.raises(UsageError, match=reason):
        write_glm4moe(tmp_path / "ours", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_what_is_there_is_not_replaced(tmp_path):
    write_random(tmp_path / "ours", SHARED, seed=1, format="bf16")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "kept").write_text("mine")
    with pytest.raises(CheckpointError, match="exists"):
        write_glm4moe(tmp_path / "ours", tmp_path / "theirs")
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["kept"]


@pytest.mark.parametrize("export", [write_glm4moe, lambda folder, out: write_gguf(folder, out, "bf16")])
def test_a_stack_of_experts_is_expanded_once_to_be_written_and_once_to_be_compared(export, tmp_path, monkeypatch):
    write_random(tmp_path / "ours", dataclasses.replace(SHARED, vocab_size=16_384), seed=1, format="int4")
    Tokenizer.load(find_model("nano")).save(tmp_path / "ours")
    read, weight = Counter(), Checkpoint.weight
    monkeypatch.setattr(Checkpoint, "weight", lambda self, name: (read.update([name]), weight(self, name))[1])
    export(tmp_path / "ours", tmp_path / "theirs")
    stacks = {name: times for name, times in read.items() if ".experts." in name}
    assert len(stacks) == 4
    assert max(stacks.values()) <= 2
