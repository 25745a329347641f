"""A second opinion: transformers' Glm4Moe is the same function, once q and k rows stand in half-rotate order."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from mobilemoe.config import ModelConfig, RopeScaling
from mobilemoe.model import MobileMoE
from mobilemoe.presets import family_member

transformers = pytest.importorskip("transformers")

FAMILY = family_member(64, vocab_size=128, layers=3)
GROUPED_QUERIES = ModelConfig(
    vocab_size=128,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    intermediate_size=16,
    intermediate_size_mlp=64,
    num_local_experts=12,
    num_experts_per_tok=4,
)
# theta 500,000 over heads of 32 has wavelengths on both sides of each of these contexts.
CASES = {
    "plain": FAMILY,
    "released-scaling": dataclasses.replace(FAMILY, rope_scaling=RopeScaling()),
    "blended-scaling": dataclasses.replace(FAMILY, rope_scaling=RopeScaling(high_freq_factor=4.0)),
    "grouped-queries": GROUPED_QUERIES,
    "short-scaling": dataclasses.replace(
        GROUPED_QUERIES, rope_scaling=RopeScaling(original_max_position_embeddings=64)
    ),
    "no-qk-norm": dataclasses.replace(GROUPED_QUERIES, qk_norm="none"),
    "head-weight": dataclasses.replace(GROUPED_QUERIES, qk_norm="head_weight"),
    "no-renormalisation": dataclasses.replace(GROUPED_QUERIES, norm_topk_prob=False),
    "untied": dataclasses.replace(GROUPED_QUERIES, tie_word_embeddings=False),
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


def glm(model: MobileMoE) -> nn.Module:
    """The Glm4Moe model with the weights of `model`."""
    config = model.config
    rope = {"rope_type": "default", "rope_theta": config.rope_theta, "partial_rotary_factor": 1.0}
    if config.rope_scaling is not None:
        rope |= {"rope_type": "llama3", **vars(config.rope_scaling)}
    theirs = transformers.Glm4MoeForCausalLM(
        transformers.Glm4MoeConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            intermediate_size=1,  # of dense layers, and there are none
            moe_intermediate_size=config.intermediate_size,
            n_shared_experts=config.intermediate_size_mlp // config.intermediate_size,
            n_routed_experts=config.num_local_experts,
            num_experts_per_tok=config.num_experts_per_tok,
            norm_topk_prob=config.norm_topk_prob,
            routed_scaling_factor=config.routed_scaling_factor,
            rms_norm_eps=config.rms_norm_eps,
            tie_word_embeddings=config.tie_word_embeddings,
            max_position_embeddings=config.max_position_embeddings,
            use_qk_norm=config.qk_norm != "none",
            rope_parameters=rope,
            partial_rotary_factor=1.0,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=0,
            num_mtp_layers=0,
        )
    )
    theirs.set_experts_implementation("eager")  # the grouped one takes no float64
    theirs = theirs.double().eval()
    theirs.load_state_dict(glm_weights(model, theirs.state_dict().keys()))
    return theirs


def glm_weights(model: MobileMoE, names: list[str]) -> dict[str, torch.Tensor]:
    config, ours = model.config, model.state_dict()
    # Adjacent pairs (0, 1), (2, 3), ... become pairs half a head apart.
    half_rotate = [*range(0, config.head_dim, 2), *range(1, config.head_dim, 2)]
    weights = {}
    for name in names:
        own = name.replace(".mlp.", ".feed_forward.")
        own = own.replace("shared_experts.", "shared_expert.").replace(".gate.weight", ".router.weight")
        own = own.replace(".gate.e_score_correction_bias", ".expert_bias")
        if name == "lm_head.weight" and config.tie_word_embeddings:
            weights[name] = ours["model.embed_tokens.weight"]
        elif name.endswith(("q_proj.weight", "k_proj.weight")):
            weights[name] = ours[own].unflatten(0, (-1, config.head_dim))[:, half_rotate].flatten(0, 1)
        elif name.endswith(("q_norm.weight", "k_norm.weight")):
            weights[name] = torch.ones(config.head_dim).double() if config.qk_norm == "head" else ours[own][half_rotate]
        elif ".experts." in name:  # theirs are [E, out, in]
            weights[name] = ours[own].transpose(1, 2).contiguous()
        else:
            weights[name] = ours[own]
    return weights


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
