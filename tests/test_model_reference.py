"""The PyTorch model computes what spec section 2 says, for every kind of model and every stored format."""

import dataclasses

import numpy as np
import pytest
import torch

from mobilemoe.checkpoint import Checkpoint, write_random
from mobilemoe.config import FULL, SLIDING, ModelConfig, RopeScaling
from mobilemoe.model import MobileMoE
from mobilemoe.presets import family_member
from reference import reference_logits

TOKENS = 20
VOCABULARY = 96

# The released scaling moves only wavelengths beyond 8192; a short context brings both branches into a short test.
SHORT_SCALING = RopeScaling(original_max_position_embeddings=64)
BLENDED_SCALING = RopeScaling(
    factor=8.0, original_max_position_embeddings=256, low_freq_factor=1.0, high_freq_factor=4.0
)

FAMILY = family_member(64, vocab_size=VOCABULARY, layers=3, rope_scaling=RopeScaling())
GROUPED_QUERIES = ModelConfig(
    vocab_size=VOCABULARY,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=32,
    intermediate_size_mlp=64,
    num_local_experts=6,
    num_experts_per_tok=2,
)
DENSE = ModelConfig(
    vocab_size=VOCABULARY,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=16,
    ffn_type="dense",
    intermediate_size=96,
)


def but(config: ModelConfig, **changes: object) -> ModelConfig:
    return dataclasses.replace(config, **changes)


SLIDING_LAYERS = {"sliding_window": 7, "layer_types": (FULL, SLIDING, SLIDING)}
CONFIGS = {
    "family": FAMILY,
    "one-head": family_member(32, expansion=4, granularity=4, layers=2, vocab_size=VOCABULARY),
    "three-heads": family_member(96, expansion=2, granularity=4, layers=2, vocab_size=VOCABULARY),
    "no-shared-expert": family_member(64, expansion=3, granularity=4, shared=False, layers=2, vocab_size=VOCABULARY),
    "one-of-many": family_member(64, expansion=4, granularity=1, shared=False, layers=2, vocab_size=VOCABULARY),
    "grouped-queries": GROUPED_QUERIES,
    "short-scaling": but(GROUPED_QUERIES, rope_scaling=SHORT_SCALING),
    "blended-scaling": but(GROUPED_QUERIES, rope_scaling=BLENDED_SCALING, rope_theta=10_000.0),
    "no-qk-norm": but(GROUPED_QUERIES, qk_norm="none"),
    "head-weight": but(GROUPED_QUERIES, qk_norm="head_weight"),
    "no-renormalisation": but(GROUPED_QUERIES, norm_topk_prob=False, routed_scaling_factor=1.3),
    "softmax-renormalised": but(GROUPED_QUERIES, router_score="softmax", intermediate_size_mlp=0),
    "every-expert": but(GROUPED_QUERIES, num_experts_per_tok=6),
    "untied": but(GROUPED_QUERIES, tie_word_embeddings=False, rms_norm_eps=1e-3),
    "dense": DENSE,
    "pro-like": but(DENSE, attention_scale=0.1, **SLIDING_LAYERS),
    "window-of-one": but(DENSE, sliding_window=1, layer_types=(SLIDING, FULL, SLIDING)),
    "wide-window": but(DENSE, sliding_window=TOKENS, layer_types=(SLIDING,) * 3),
    "olmoe-like": but(
        GROUPED_QUERIES,
        num_key_value_heads=4,
        intermediate_size_mlp=0,
        router_score="softmax",
        norm_topk_prob=False,
        routed_scaling_factor=1.0,
        qk_norm="projection_weight",
        tie_word_embeddings=False,
        rope_theta=10_000.0,
    ),
}
FORMATS = {
    "int4-out": {"format": "int4", "group_axis": "out"},
    "int4-in": {"format": "int4", "group_axis": "in"},
    "bf16": {"format": "bf16"},
}


def loaded(folder) -> MobileMoE:
    with Checkpoint.open(folder) as checkpoint:
        model = MobileMoE(checkpoint.config)
        model.load_weights(checkpoint.weight)
    return model.eval()


@torch.no_grad()
def logits_of(model: MobileMoE, ids: list[int]) -> np.ndarray:
    return model(torch.tensor([ids]))[0].numpy()


def error_per_position(a_TV: np.ndarray, b_TV: np.ndarray) -> np.ndarray:
    """max|a - b| / max|b|."""
    return np.abs(a_TV - b_TV).max(axis=1) / np.abs(b_TV).max(axis=1)


def check(folder, ids: list[int]) -> None:
    want_TV = reference_logits(folder, ids)
    model = loaded(folder)
    fp32_TV = logits_of(model, ids)
    fp64_TV = logits_of(model.double(), ids)

    assert fp64_TV.dtype == np.float64
    assert error_per_position(fp64_TV, want_TV).max() < 1e-10

    assert fp32_TV.dtype == np.float32
    error_T = error_per_position(fp32_TV, want_TV)
    assert error_T.max() < 1e-3
    top_T2 = np.sort(want_TV, axis=1)[:, -2:]
    clear_T = top_T2[:, 1] - top_T2[:, 0] > 1e-3 * np.abs(want_TV).max(axis=1)
    assert clear_T.any()
    np.testing.assert_array_equal(fp32_TV.argmax(axis=1)[clear_T], want_TV.argmax(axis=1)[clear_T])


@pytest.mark.parametrize("stored", FORMATS)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_kind_of_model_agrees_with_the_reference(name, stored, tmp_path):
    config, seed = CONFIGS[name], list(CONFIGS).index(name)
    write_random(tmp_path / "model", config, seed=seed, **FORMATS[stored])
    check(tmp_path / "model", np.random.default_rng(seed).integers(0, VOCABULARY, TOKENS).tolist())


@pytest.mark.parametrize("seed", range(100, 106))
def test_the_released_layout_agrees_with_the_reference_for_many_seeds(seed, tmp_path):
    write_random(tmp_path / "model", FAMILY, seed=seed, format="int4", group_axis="out")
    length = (1, 2, 5, 9, 17, 33)[seed % 6]
    check(tmp_path / "model", np.random.default_rng(seed).integers(0, VOCABULARY, length).tolist())


def test_the_reference_tells_its_models_apart(tmp_path):
    """Each feature moves the logits, so that agreement means something."""
    ids = list(range(3, 3 + TOKENS))
    write_random(tmp_path / "base", GROUPED_QUERIES, seed=1, format="bf16")
    base_TV = reference_logits(tmp_path / "base", ids)
    changes = {
        "scaling": {"rope_scaling": SHORT_SCALING},
        "norm": {"qk_norm": "none"},
        "scale": {"attention_scale": 0.1},
        "window": {"sliding_window": 7, "layer_types": (FULL, SLIDING)},
        "renormalisation": {"norm_topk_prob": False},
        "routed": {"routed_scaling_factor": 1.0},
        "active": {"num_experts_per_tok": 3},
        "eps": {"rms_norm_eps": 1e-3},
    }
    for name, change in changes.items():
        write_random(tmp_path / name, but(GROUPED_QUERIES, **change), seed=1, format="bf16")
        other_TV = reference_logits(tmp_path / name, ids)
        assert error_per_position(other_TV, base_TV)[-1] > 1e-5, name
