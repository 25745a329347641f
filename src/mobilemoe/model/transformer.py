"""MobileMoE: the whole model in PyTorch (spec section 2).

B batch, T new tokens, S tokens with the cache, D hidden, V vocabulary. Parameter names are the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mobilemoe.config import ModelConfig
from mobilemoe.model.attention import Documents, documents, visible
from mobilemoe.model.block import Block, MoE
from mobilemoe.model.kv_cache import KVCache
from mobilemoe.model.norm import RMSNorm, at_least_fp32
from mobilemoe.model.rope import rope_frequencies, rope_table
from mobilemoe.model.router import Routing


class Backbone(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class MobileMoE(nn.Module):
    """A model of any ModelConfig; weights are uninitialised until `initialize` or `load_weights`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.freq_R = rope_frequencies(config)

    @property
    def head_VD(self) -> Tensor:
        """The output head's weight: the embedding itself where tied, as quantisation-aware training sees it."""
        head = self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        effective = getattr(head, "effective_weight", None)
        return head.weight if effective is None else effective()

    def hidden(
        self,
        tokens_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        segments_BT: Tensor | npt.NDArray[np.integer] | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Tensor, list[Routing]]:
        """The last norm's output x_BTD, and each MoE layer's routing (over the B T tokens, flattened).

        positions_BT: place of each token in its document (default: its place in the row). segments_BT: a number per
        token; tokens attend only to tokens with the same number (default: one document). Padding has a number of its
        own. With tokens on a GPU the segments may stay on the CPU, which saves waiting for the GPU; as an array, since
        FSDP sends every tensor to the GPU. `cache` is extended by the T tokens.
        """
        if isinstance(segments_BT, np.ndarray):
            segments_BT = torch.from_numpy(segments_BT)
        past = 0 if cache is None else cache.length
        if positions_BT is None:
            positions_BT = torch.arange(past, past + tokens_BT.shape[1], device=tokens_BT.device).expand_as(tokens_BT)
        x_BTD = self.model.embed_tokens(tokens_BT)
        if self.freq_R.device != tokens_BT.device:  # moved once, since a copy to a GPU makes the host wait
            self.freq_R = self.freq_R.to(tokens_BT.device)
        rope = rope_table(self.freq_R, positions_BT, at_least_fp32(x_BTD).dtype)
        mask_for = self._masks(tokens_BT, segments_BT, cache)
        routings = []
        for index, layer in enumerate(self.model.layers):
            x_BTD, routing = layer(x_BTD, rope, mask_for(self.config.window(index)), cache)
            if routing is not None:
                routings.append(routing)
        if cache is not None:
            cache.advance(tokens_BT.shape[1])
        return self.model.norm(x_BTD), routings

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """logits_BTV; arguments as for `hidden`."""
        x_BTD, _ = self.hidden(tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT, cache=cache)
        return self.logits(x_BTD)

    def logits(self, x_D: Tensor) -> Tensor:
        """Logits of hidden states [..., D] as [..., V]."""
        return nn.functional.linear(x_D, self.head_VD)

    def moe_layers(self) -> list[MoE]:
        """The MoE part of every layer that has one."""
        return [layer.feed_forward for layer in self.model.layers if isinstance(layer.feed_forward, MoE)]

    @torch.no_grad()
    def initialize(self, seed: int, std: float = 0.02) -> None:
        """Draws normal weights of `std`, over sqrt(2 layers) for projections into the residual; norms 1, bias 0."""
        generator = torch.Generator(self.head_VD.device).manual_seed(seed)
        residual_std = std / (2 * self.config.num_hidden_layers) ** 0.5
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            else:
                into_residual = name.endswith(("o_proj.weight", "down_proj.weight", "down_proj"))
                parameter.normal_(0.0, residual_std if into_residual else std, generator=generator)
        for layer in self.moe_layers():
            if layer.expert_bias is not None:
                layer.expert_bias.zero_()

    @torch.no_grad()
    def load_weights(self, weight: Callable[[str], npt.NDArray[np.float32]]) -> None:
        """Copies every weight from `weight(name)`, an fp32 array by its canonical name (spec 3.2)."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(torch.from_numpy(weight(name)))

    def _masks(
        self, tokens_BT: Tensor, segments_BT: Tensor | None, cache: KVCache | None
    ) -> Callable[[int | None], Tensor | Documents | None]:
        """A function that gives the mask for a window, built once; None stands for plain causal attention."""
        plain = segments_BT is None and (cache is None or cache.length == 0)
        segments_BT = torch.zeros_like(tokens_BT) if segments_BT is None else segments_BT
        segments_BS = segments_BT if cache is None else cache.append_segments(segments_BT)
        device = tokens_BT.device
        flash = cache is None and tokens_BT.is_cuda and self._computes_in_bf16()
        made: dict[int | None, Tensor | Documents | None] = {}

        def mask_for(window: int | None) -> Tensor | Documents | None:
            window = None if window is None or window >= segments_BS.shape[1] else window
            if window not in made:
                if plain and window is None:
                    made[window] = None
                elif flash and window is None:
                    made[window] = documents(segments_BT, device)
                else:
                    made[window] = visible(segments_BT.to(device), segments_BS.to(device), window)
            return made[window]

        return mask_for

    def _computes_in_bf16(self) -> bool:
        """Whether matrix products run in bf16, the only precision in which FlashAttention is used here."""
        weight = self.model.norm.weight
        autocast = torch.is_autocast_enabled(weight.device.type)
        return (torch.get_autocast_dtype(weight.device.type) if autocast else weight.dtype) == torch.bfloat16
