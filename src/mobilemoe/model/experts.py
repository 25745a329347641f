"""Routed experts: the obvious loop, the sorted grouped path, and drop-and-pad.

N tokens, D hidden, E experts, A active experts per token, F expert width, P = N A (token, expert) pairs, C capacity.
Each path takes x_ND, experts_NA, weights_NA, gate_up_ED2F (first half gate, second half up) and down_EFD, and returns
sum over a of weights[n, a] * expert[experts[n, a]](x[n]) as y_ND.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mobilemoe.config import ModelConfig


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(first half) * second half, over the last dimension."""
    gate, up = gate_up.chunk(2, dim=-1)
    return nn.functional.silu(gate) * up


def loop_experts(
    x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor, gate_up_ED2F: Tensor, down_EFD: Tensor
) -> Tensor:
    """The reference: one expert after the other, dropless."""
    y_ND = torch.zeros_like(x_ND)
    for expert in range(gate_up_ED2F.shape[0]):
        token_P, slot_P = (experts_NA == expert).nonzero(as_tuple=True)
        if len(token_P) == 0:
            continue
        out_PD = swiglu(x_ND[token_P] @ gate_up_ED2F[expert].to(x_ND.dtype)) @ down_EFD[expert].to(x_ND.dtype)
        weighted_PD = out_PD * weights_NA[token_P, slot_P, None].to(out_PD.dtype)
        y_ND = y_ND.index_add(0, token_P, weighted_PD)
    return y_ND


def grouped_experts(
    x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor, gate_up_ED2F: Tensor, down_EFD: Tensor
) -> Tensor:
    """Dropless: pairs sorted by expert, one grouped matmul over all experts for each of the two matrices."""
    active = experts_NA.shape[1]
    order_P = experts_NA.flatten().argsort(stable=True)
    load_E = torch.bincount(experts_NA.flatten(), minlength=gate_up_ED2F.shape[0])
    x_PD = x_ND.index_select(0, order_P // active)
    out_PD = grouped_matmul(swiglu(grouped_matmul(x_PD, gate_up_ED2F, load_E)), down_EFD, load_E)
    # Back to token order by a gather, so that the sum over A has a fixed order.
    place_P = torch.empty_like(order_P).scatter_(0, order_P, torch.arange(len(order_P), device=order_P.device))
    out_NAD = out_PD.index_select(0, place_P).unflatten(0, (-1, active))
    return torch.einsum("nad,na->nd", out_NAD, weights_NA.to(out_NAD.dtype))


def grouped_matmul(x_PC: Tensor, weight_ECF: Tensor, load_E: Tensor) -> Tensor:
    """Rows of x, sorted by expert (load[e] rows for expert e), each times its expert's matrix: [P, F]."""
    weight_ECF = weight_ECF.to(x_PC.dtype)
    aligned = weight_ECF.shape[1] % 8 == 0 and weight_ECF.shape[2] % 8 == 0
    if x_PC.dtype == torch.bfloat16 and aligned:  # what grouped_mm takes everywhere: bf16, strides of 16 bytes
        grouped_mm = getattr(nn.functional, "grouped_mm", None) or torch._grouped_mm
        ends_E = load_E.cumsum(0).to(torch.int32)
        return grouped_mm(x_PC, weight_ECF, offs=ends_E)
    if len(x_PC) == 0:
        return x_PC.new_zeros(0, weight_ECF.shape[2])
    pairs = zip(x_PC.split(load_E.tolist()), weight_ECF.unbind(), strict=True)
    return torch.cat([rows @ weight for rows, weight in pairs if len(rows)])


def capacity_experts(
    x_ND: Tensor,
    experts_NA: Tensor,
    weights_NA: Tensor,
    gate_up_ED2F: Tensor,
    down_EFD: Tensor,
    capacity_factor: float,
) -> Tensor:
    """Drop-and-pad: every expert takes C = ceil(factor * N A / E) pairs in token order; later ones add nothing."""
    (tokens, active), experts = experts_NA.shape, gate_up_ED2F.shape[0]
    capacity = math.ceil(capacity_factor * tokens * active / experts)
    expert_P = experts_NA.flatten()
    order_P = expert_P.argsort(stable=True)
    load_E = torch.bincount(expert_P, minlength=experts)
    first_E = load_E.cumsum(0) - load_E
    sorted_P = expert_P[order_P]
    rank_P = torch.arange(len(order_P), device=order_P.device) - first_E[sorted_P]  # place in its expert's queue
    kept_P = rank_P < capacity
    pair_Q, slot_Q = order_P[kept_P], sorted_P[kept_P] * capacity + rank_P[kept_P]
    x_SD = x_ND.new_zeros(experts * capacity, x_ND.shape[1]).index_copy(
        0, slot_Q, x_ND.index_select(0, pair_Q // active)
    )
    h_ECF = swiglu(x_SD.unflatten(0, (experts, capacity)) @ gate_up_ED2F.to(x_ND.dtype))
    out_SD = (h_ECF @ down_EFD.to(x_ND.dtype)).flatten(0, 1)
    out_PD = out_SD.new_zeros(tokens * active, x_ND.shape[1]).index_copy(0, pair_Q, out_SD.index_select(0, slot_Q))
    return torch.einsum("nad,na->nd", out_PD.unflatten(0, (tokens, active)), weights_NA.to(out_PD.dtype))


class Experts(nn.Module):
    """The routed experts' weights. `capacity_factor` None is dropless; a number is drop-and-pad, in training only."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        shape = (config.num_local_experts, config.hidden_size, config.intermediate_size)
        self.gate_up_proj = nn.Parameter(torch.empty(shape[0], shape[1], 2 * shape[2]))
        self.down_proj = nn.Parameter(torch.empty(shape[0], shape[2], shape[1]))
        self.capacity_factor: float | None = None

    def forward(self, x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor) -> Tensor:
        arguments = (x_ND, experts_NA, weights_NA, self.gate_up_proj, self.down_proj)
        if self.training and self.capacity_factor is not None:
            return capacity_experts(*arguments, self.capacity_factor)
        return grouped_experts(*arguments)
