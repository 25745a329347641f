"""A Llama (SmolLM2) that continues thousands of prompts at once, for `write.py`.

transformers reads and computes it, all but attention: its own repeats keys and values for every query head that shares
them, and for thousands of sequences there is no room for that.

B sequences, T new tokens, S places in the cache, L layers, D hidden, H query heads, K key/value heads, h head_dim,
V vocabulary, C complex numbers of a head (h / 2).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STEP = 16  # the cache is read in steps of so many places, since products of round sizes are faster


def load(model: str, device: str) -> tuple[Any, Any]:
    """The tokenizer and the model (in bf16 on a GPU) of a folder, a Hub id or a GGUF file.

    Raises ValueError where there is no model, or none that `Teacher` computes.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(model)
    place, file = (str(path.parent), {"gguf_file": path.name}) if path.suffix == ".gguf" else (model, {})
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    try:
        network: Any = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, **file)
        tokenizer = AutoTokenizer.from_pretrained(place, **file)
    except (OSError, ValueError, ImportError, SafetensorError) as fault:
        reason = str(fault).strip().splitlines()[0].rstrip(": ")
        raise ValueError(f"{model} is no model that can be read: {reason}") from fault
    config = network.config
    if config.model_type != "llama" or config.rope_parameters["rope_type"] != "default":
        raise ValueError(f"{model} cannot be the teacher: only a Llama with unscaled rotary positions is computed")
    return tokenizer, network.to(device).eval()


class Teacher:
    """Decodes a batch of B left-padded prompts with a cache of at least `length` places."""

    def __init__(self, network: Any, batch: int, length: int) -> None:
        config, self.head = network.config, network.lm_head
        self.embed, self.layers, self.norm = network.model.embed_tokens, network.model.layers, network.model.norm
        self.head_dim: int = config.head_dim
        places = -(-length // STEP) * STEP
        shape = (len(self.layers), batch, config.num_key_value_heads, places, self.head_dim)
        self.k_LBKSh, self.v_LBKSh = self.head.weight.new_zeros(shape), self.head.weight.new_zeros(shape)
        frequency_C = config.rope_parameters["rope_theta"] ** -(torch.arange(0, self.head_dim, 2) / self.head_dim)
        angle_SC = torch.outer(torch.arange(places), frequency_C)
        self.turn_SC = torch.polar(torch.ones_like(angle_SC), angle_SC).to(network.device)

    @torch.inference_mode()
    def step(self, ids_BT: Tensor, start: int, pad_B: Tensor) -> Tensor:
        """Logits [B, V] after T tokens in the places from `start` of the cache; sequence b begins in place pad_B[b]."""
        end = start + ids_BT.shape[1]
        places = -(-end // STEP) * STEP
        place_T = torch.arange(start, end, device=ids_BT.device)
        place_S = torch.arange(places, device=ids_BT.device)
        turn_B1TC = self.turn_SC[(place_T - pad_B[:, None]).clamp(min=0)][:, None]
        first_BT = torch.minimum(pad_B[:, None], place_T)  # a place before the beginning sees itself alone
        seen_BTS = (place_S >= first_BT[..., None]) & (place_S <= place_T[:, None])
        x_BTD = self.embed(ids_BT)
        for layer, k_BKSh, v_BKSh in zip(self.layers, self.k_LBKSh, self.v_LBKSh, strict=True):
            attention, in_BTD = layer.self_attn, layer.input_layernorm(x_BTD)
            k_BKSh[:, :, start:end] = rotated(self._heads(attention.k_proj(in_BTD)), turn_B1TC)
            v_BKSh[:, :, start:end] = self._heads(attention.v_proj(in_BTD))
            q_BHTh = rotated(self._heads(attention.q_proj(in_BTD)), turn_B1TC)
            mixed_BHTh = mixed(q_BHTh, k_BKSh[:, :, :places], v_BKSh[:, :, :places], seen_BTS)
            x_BTD = x_BTD + attention.o_proj(mixed_BHTh.transpose(1, 2).flatten(2))
            x_BTD = x_BTD + layer.mlp(layer.post_attention_layernorm(x_BTD))
        logits_BV: Tensor = self.head(self.norm(x_BTD[:, -1]))
        return logits_BV

    def _heads(self, x_BTD: Tensor) -> Tensor:
        """[B, T, heads * h] as [B, heads, T, h]."""
        x_BTHh: Tensor = x_BTD.unflatten(-1, (-1, self.head_dim))
        return x_BTHh.transpose(1, 2)


def rotated(x_BHTh: Tensor, turn_B1TC: Tensor) -> Tensor:
    """Rotary positions; the halves of a head are the real and the imaginary parts."""
    turned_BHTC = torch.complex(*x_BHTh.float().chunk(2, dim=-1)) * turn_B1TC
    return torch.cat((turned_BHTC.real, turned_BHTC.imag), dim=-1).to(x_BHTh.dtype)


def mixed(q_BHTh: Tensor, k_BKSh: Tensor, v_BKSh: Tensor, seen_BTS: Tensor) -> Tensor:
    """Attention [B, H, T, h]; the query heads that share a key head are rows of one product, which reads it once."""
    grouped_BKRh = q_BHTh.reshape(len(q_BHTh), k_BKSh.shape[1], -1, q_BHTh.shape[-1])  # R = H / K * T rows
    scores_BKRS = grouped_BKRh @ k_BKSh.transpose(2, 3) * q_BHTh.shape[-1] ** -0.5
    scores_BHTS = scores_BKRS.view(*q_BHTh.shape[:3], -1).masked_fill(~seen_BTS[:, None], -torch.inf)
    shares_BKRS = scores_BHTS.float().softmax(-1).to(v_BKSh.dtype).view_as(scores_BKRS)
    mixed_BKRh: Tensor = shares_BKRS @ v_BKSh
    return mixed_BKRh.view_as(q_BHTh)
