"""A second opinion: transformers' Glm4Moe is the same function, once q and k rows stand in half-rotate order."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from glm import glm
from mobilemoe.config import ModelConfig, RopeScaling
from mobilemoe.model import MobileMoE
from mobilemoe.presets import family_member
from model_configs import GROUPED_QUERIES

FAMILY = family_member(64, vocab_size=128, layers=3)
WIDE_HEADS = dataclasses.replace(
    GROUPED_QUERIES, vocab_size=128, head_dim=32, intermediate_size=16, num_local_experts=12, num_experts_per_tok=4
)
# theta 500,000 over heads of 32 has wavelengths on both sides of each of these contexts.
CASES = {
    "plain": FAMILY,
    "released-scaling": dataclasses.replace(FAMILY, rope_scaling=RopeScaling()),
    "blended-scaling": dataclasses.replace(FAMILY, rope_scaling=RopeScaling(high_freq_factor=4.0)),
    "grouped-queries": WIDE_HEADS,
    "short-scaling": dataclasses.replace(WIDE_HEADS, rope_scaling=RopeScaling(original_max_position_embeddings=64)),
    "no-qk-norm": dataclasses.replace(WIDE_HEADS, qk_norm="none"),
    "head-weight": dataclasses.replace(WIDE_HEADS, qk_norm="head_weight"),
    "no-renormalisation": dataclasses.replace(WIDE_HEADS, norm_topk_prob=False),
    "untied": dataclasses.replace(WIDE_HEADS, tie_word_embeddings=False),
}


class DoubleOnly:
    """torch for their modules, without fp32: their norms, angles and router would else stay in it."""

    float = float32 = torch.float64

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)


@pytest.fixture
def _in_float64(monkeypatch):
    from transformers import modeling_rope_utils
    from transformers.models.glm4_moe import modeling_glm4_moe

    monkeypatch.setattr(modeling_rope_utils, "torch", DoubleOnly())
    monkeypatch.setattr(modeling_glm4_moe, "torch", DoubleOnly())


def random_model(config: ModelConfig, seed: int) -> MobileMoE:
    """Weights large enough that attention and routing are far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    model = MobileMoE(config).double().eval()
    for name, tensor in model.state_dict().items():
        mean, std = (1.0, 0.1) if name.endswith("norm.weight") else (0.0, 0.15)
        tensor.normal_(mean, std, generator=generator)
    return model


def check(config: ModelConfig, seed: int, cosine: float, error: float) -> None:
    model = random_model(config, seed)
    tokens_BT = torch.from_numpy(np.random.default_rng(seed).integers(0, 128, (2, 40)))
    with torch.no_grad():
        ours_BTV, theirs_BTV = model(tokens_BT), glm(model)(tokens_BT).logits
    assert ours_BTV.dtype == theirs_BTV.dtype == torch.float64
    cosine_BT = nn.functional.cosine_similarity(ours_BTV, theirs_BTV, dim=-1)
    error_BT = (ours_BTV - theirs_BTV).abs().amax(-1) / theirs_BTV.abs().amax(-1)
    assert cosine_BT.min() > cosine
    assert error_BT.max() < error


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("_in_float64")
def test_glm4moe_in_float64_gives_the_same_logits(name, seed):
    check(CASES[name], seed, cosine=1 - 1e-14, error=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_glm4moe_as_it_is_gives_the_same_logits(name):
    check(CASES[name], 2, cosine=1 - 1e-11, error=1e-5)
