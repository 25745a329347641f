"""transformers' Glm4Moe with the weights of a model of ours."""

import pytest
import torch
from torch import nn

from mobilemoe.model import MobileMoE

transformers = pytest.importorskip("transformers")


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
