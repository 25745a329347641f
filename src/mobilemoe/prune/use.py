"""How much each expert does for a text: how often it is chosen, with what weight, and how much it adds.

L layers, E experts, A active experts per token, N tokens, D hidden, F expert width, P = N A (token, expert) pairs,
S tokens of a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobilemoe.checkpoint import Checkpoint
from mobilemoe.config import ModelConfig
from mobilemoe.model.attention import visible
from mobilemoe.model.block import Block, MoE
from mobilemoe.model.experts import Experts, grouped_matmul, plus, swiglu, through_experts
from mobilemoe.model.rope import rope_frequencies, rope_table
from mobilemoe.progress import tell

Floats = NDArray[np.float64]

SAMPLE = 256  # tokens for which every expert is computed, to compare what they give


@dataclass(frozen=True)
class Use:
    """Sums over the `tokens` of a text, for each expert of each layer.

    `chosen_LE`: the tokens that chose it. `weight_LE`: their routing weights. `added_LE`: the norms of what it added
    to them, weight times output. `distance_LEE`: the mean distance of two experts' outputs for the same token; None if
    it was not asked for.
    """

    tokens: int
    chosen_LE: Floats
    weight_LE: Floats
    added_LE: Floats
    distance_LEE: Floats | None = None


def measure_use(checkpoint: Checkpoint, windows: Sequence[Sequence[int]], *, distances: bool = False) -> Use:
    """The use of a model's experts for `windows` of ids, each computed by itself in fp32.

    One layer is in memory at a time, with the hidden states of all windows, so that a model may be larger than the
    memory. On a GPU if there is one. The model must have experts.
    """
    config = checkpoint.config
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    freq_R = rope_frequencies(config).to(device)
    embedding_VD = torch.from_numpy(checkpoint.weight("model.embed_tokens.weight"))
    hidden = [embedding_VD[torch.tensor(list(ids))].unsqueeze(0) for ids in windows]
    del embedding_VD
    sums_L3E, distance_LEE = [], []
    for layer in range(config.num_hidden_layers):
        block, counting = _open_layer(checkpoint, layer, device)
        sample_size = -(-SAMPLE // len(windows)) if distances else 0
        with torch.inference_mode():
            for place, x_BTD in enumerate(hidden):
                tell(
                    layer * len(hidden) + place, config.num_hidden_layers * len(hidden), "texts routed, layer by layer"
                )
                x_BTD = x_BTD.to(device)
                tokens = x_BTD.shape[1]
                rope = rope_table(freq_R, torch.arange(tokens, device=device).unsqueeze(0), x_BTD.dtype)
                counting.sample_next = sample_size
                hidden[place] = block(x_BTD, rope, _mask(config, layer, tokens, device), None)[0].cpu()
            if distances:
                distance_LEE.append(counting.distances())
        sums_L3E.append(counting.sums_3E.numpy())
    chosen_LE, weight_LE, added_LE = np.stack(sums_L3E, axis=1)
    tokens = sum(map(len, windows))
    return Use(tokens, chosen_LE, weight_LE, added_LE, np.array(distance_LEE) if distances else None)


class _Counting(Experts):
    """Experts that count their use while they compute."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.sums_3E = torch.zeros(3, config.num_local_experts, dtype=torch.float64, device="cpu")
        self.sample_next = 0  # tokens of the next call that `distances` compares the experts by
        self._samples: list[Tensor] = []

    def forward(self, x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor, more: Sequence[Tensor] = ()) -> Tensor:
        gate_up_ED2F, down_EFD = self.weights()
        experts = len(down_EFD)
        order_P = experts_NA.flatten().argsort(stable=True)
        expert_P = experts_NA.flatten()[order_P]
        weight_P = weights_NA.flatten()[order_P]
        if self.sample_next:
            self._samples.append(x_ND[:: max(1, len(x_ND) // self.sample_next)][: self.sample_next])

        def ffn(x_PD: Tensor, load_E: Tensor) -> Tensor:
            out_PD = grouped_matmul(swiglu(grouped_matmul(x_PD, gate_up_ED2F, load_E)), down_EFD, load_E)
            added_P = weight_P * out_PD.norm(dim=1)
            for sum_E, value_P in zip(self.sums_3E, (torch.ones_like(weight_P), weight_P, added_P), strict=True):
                found_E = torch.zeros(experts, dtype=torch.float64, device=x_PD.device)
                sum_E += found_E.index_add_(0, expert_P, value_P.double()).cpu()
            return out_PD

        return plus(through_experts(x_ND, experts_NA, weights_NA, experts, ffn), more)

    def distances(self) -> Floats:
        """The mean distance of the outputs of each two experts, [E, E], over the sampled tokens."""
        x_SD = torch.cat(self._samples)
        self._samples.clear()
        gate_up_ED2F, down_EFD = self.weights()
        out_ESD = torch.stack([swiglu(x_SD @ up) @ down for up, down in zip(gate_up_ED2F, down_EFD, strict=True)])
        rows = [(out_ESD - out_SD).norm(dim=2).mean(dim=1) for out_SD in out_ESD]
        distance_EE: Floats = torch.stack(rows).double().cpu().numpy()
        return distance_EE


def _open_layer(checkpoint: Checkpoint, layer: int, device: torch.device) -> tuple[Block, _Counting]:
    """One layer of the model in fp32, and its experts."""
    with torch.device("meta"):  # the weights are read from the file: allocate and initialise nothing
        block = Block(checkpoint.config, layer)
        counting = _Counting(checkpoint.config)
    assert isinstance(block.feed_forward, MoE)
    block.feed_forward.experts = counting
    block.to_empty(device=device)
    for name, tensor in block.state_dict().items():
        tensor.copy_(torch.from_numpy(checkpoint.weight(f"model.layers.{layer}.{name}")))
    return block.eval(), counting


def _mask(config: ModelConfig, layer: int, tokens: int, device: torch.device) -> Tensor | None:
    """What a sliding layer's tokens see; None for all before them."""
    window = config.window(layer)
    if window is None or window >= tokens:
        return None
    one_document_BT = torch.zeros(1, tokens, dtype=torch.int64, device=device)
    return visible(one_document_BT, one_document_BT, window)
