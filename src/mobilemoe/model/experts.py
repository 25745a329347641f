"""Routed experts: a reference loop, the grouped products for training, also as Triton kernels, and drop-and-pad.

N tokens, D hidden, E experts, A active experts per token, F expert width, P = N A (token, expert) pairs, C capacity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mobilemoe.config import ModelConfig
from mobilemoe.model import kernels


def unchanged(x: Tensor) -> Tensor:
    """`x` itself."""
    return x


class Routed(NamedTuple):
    """What each of the four functions takes: the tokens, where they go, and the experts' weights.

    `gate_up_ED2F` holds the gate matrix in its first half and the up matrix in its second. All four return
    y_ND = sum over a of weights[n, a] * expert[experts[n, a]](x[n]). `before_down` is applied to the input of the down
    product: quantisation-aware training rounds it there.

    With expert parallelism some of the pairs belong to experts of other processes. Their expert is number E here, they
    add nothing, and `pairs` is the number of the others; None stands for all N A.
    """

    x_ND: Tensor
    experts_NA: Tensor
    weights_NA: Tensor
    gate_up_ED2F: Tensor
    down_EFD: Tensor
    before_down: Callable[[Tensor], Tensor] = unchanged
    pairs: int | None = None


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(first half) * second half, over the last dimension."""
    gate, up = gate_up.chunk(2, dim=-1)
    return nn.functional.silu(gate) * up


def loop_experts(routed: Routed) -> Tensor:
    """The reference: one expert after the other, dropless."""
    x_ND, experts_NA, weights_NA, gate_up_ED2F, down_EFD, before_down, _ = routed
    y_ND = torch.zeros_like(x_ND)
    for expert in range(gate_up_ED2F.shape[0]):
        token_P, slot_P = (experts_NA == expert).nonzero(as_tuple=True)
        if len(token_P) == 0:
            continue
        act_PF = swiglu(x_ND[token_P] @ gate_up_ED2F[expert].to(x_ND.dtype))
        out_PD = before_down(act_PF) @ down_EFD[expert].to(x_ND.dtype)
        weighted_PD = out_PD * weights_NA[token_P, slot_P, None].to(out_PD.dtype)
        y_ND = y_ND.index_add(0, token_P, weighted_PD)
    return y_ND


def grouped_experts(routed: Routed) -> Tensor:
    """Dropless: pairs sorted by expert, one grouped matmul over all experts for each of the two matrices."""
    x_ND, experts_NA, weights_NA, gate_up_ED2F, down_EFD, before_down, pairs = routed

    def ffn(x_PD: Tensor, load_E: Tensor) -> Tensor:
        act_PF = swiglu(grouped_matmul(x_PD, gate_up_ED2F, load_E))
        return grouped_matmul(before_down(act_PF), down_EFD, load_E)

    return through_experts(x_ND, experts_NA, weights_NA, gate_up_ED2F.shape[0], ffn, pairs)


def through_experts(
    x_ND: Tensor,
    experts_NA: Tensor,
    weights_NA: Tensor,
    experts: int,
    ffn: Callable[[Tensor, Tensor], Tensor],
    pairs: int | None = None,
) -> Tensor:
    """The weighted sums y_ND of what the experts give for each token. `pairs` is that of `Routed`.

    `ffn(x_PD, load_E)` computes the experts: it gets the pairs' tokens sorted by expert, load[e] rows for expert e.
    """
    order_P = experts_NA.flatten().argsort(stable=True)[:pairs]
    x_PD = x_ND.index_select(0, order_P // experts_NA.shape[1])
    out_PD = ffn(x_PD, load_of(experts_NA, experts + 1)[:experts])
    # A gather or a copy, not a scattered addition, so that a sum over A always adds in the same order.
    if pairs is None:
        place_P = torch.empty_like(order_P).scatter_(0, order_P, torch.arange(len(order_P), device=order_P.device))
        out_PD = out_PD.index_select(0, place_P)
    else:
        out_PD = out_PD.new_zeros(experts_NA.numel(), out_PD.shape[1]).index_copy(0, order_P, out_PD)
    return torch.einsum("nad,na->nd", out_PD.unflatten(0, experts_NA.shape), weights_NA.to(out_PD.dtype))


def plus(y_ND: Tensor, more: Sequence[Tensor]) -> Tensor:
    """The sum of y and of `more`."""
    for term_ND in more:
        y_ND = y_ND + term_ND
    return y_ND


def fused_experts(routed: Routed, more: Sequence[Tensor] = ()) -> Tensor:
    """`grouped_experts` on a GPU, and `more` added: a counting sort, and no scattered addition in either direction.

    The routing weight goes into SwiGLU, before the down product instead of after it, so that the products of the down
    matrix need not be kept for the weight's gradient.
    """
    from mobilemoe.model.kernels import routing, rows

    x_ND, experts_NA, weights_NA, gate_up_ED2F, down_EFD, before_down, pairs = routed
    pair_P, slot_P, ends_E = routing.sort_pairs(experts_NA, gate_up_ED2F.shape[0])
    if pairs is not None:
        # In steps of a sixteenth, since memory of ever new sizes is soon in pieces that fit nothing.
        step = -(-len(pair_P) // 16)
        pair_P = pair_P[: max(1, -(-pairs // step)) * step]
    x_PD = rows.gather_rows(x_ND, pair_P, slot_P, ends_E)
    h_P2F = grouped_product(x_PD, gate_up_ED2F, ends_E)
    act_PF = rows.weighted_swiglu(h_P2F, weights_NA, pair_P, ends_E)
    y_PD = grouped_product(before_down(act_PF), down_EFD, ends_E)
    return rows.sum_rows(y_PD, pair_P, slot_P, ends_E, experts_NA.shape[1], list(more))


def load_of(experts_NA: Tensor, experts: int) -> Tensor:
    """load_E (int64): the pairs of each expert. Unlike `bincount` it does not wait for a GPU."""
    expert_P = experts_NA.flatten()
    return expert_P.new_zeros(experts).scatter_add_(0, expert_P, torch.ones_like(expert_P))


def grouped_product(x_PC: Tensor, weight_ECF: Tensor, ends_E: Tensor) -> Tensor:
    """Rows of x, sorted by expert, each times its expert's matrix, [P, F]; those of expert e end before ends[e], int32.

    In bf16 with strides of 16 bytes, which is what PyTorch's `grouped_mm` takes on every device.
    """
    grouped_mm = getattr(nn.functional, "grouped_mm", None) or torch._grouped_mm
    product_PF: Tensor = grouped_mm(x_PC, weight_ECF.to(x_PC.dtype), offs=ends_E)
    return product_PF


def grouped_matmul(x_PC: Tensor, weight_ECF: Tensor, load_E: Tensor) -> Tensor:
    """Rows of x, sorted by expert (load[e] rows for expert e), each times its expert's matrix: [P, F]."""
    if len(x_PC) == 0:  # still a product, so that gradients flow: every process has to take part in each exchange
        return x_PC @ weight_ECF[0].to(x_PC.dtype)
    if x_PC.dtype == torch.bfloat16 and is_aligned(weight_ECF):
        if x_PC.is_cuda:
            return grouped_product(x_PC, weight_ECF, load_E.cumsum(0).to(torch.int32))
        return _padded_product(x_PC, weight_ECF, load_E)
    weight_ECF = weight_ECF.to(x_PC.dtype)
    pairs = zip(x_PC.split(load_E.tolist()), weight_ECF.unbind(), strict=True)
    return torch.cat([rows @ weight for rows, weight in pairs if len(rows)])


def _padded_product(x_PC: Tensor, weight_ECF: Tensor, load_E: Tensor) -> Tensor:
    """`grouped_product` on a CPU, with each expert's rows padded to a multiple of 32.

    A CPU compiles a kernel for every new shape, which takes longer than the product, and loads change in every step.
    """
    padded_E = (load_E + 31) // 32 * 32
    shift_E = (padded_E - load_E).cumsum(0) - (padded_E - load_E)
    slot_P = torch.arange(len(x_PC)) + shift_E.repeat_interleave(load_E)
    x_SC = x_PC.new_zeros(int(padded_E.sum()), x_PC.shape[1]).index_copy(0, slot_P, x_PC)
    return grouped_product(x_SC, weight_ECF, padded_E.cumsum(0).to(torch.int32)).index_select(0, slot_P)


def is_aligned(weight_ECF: Tensor) -> bool:
    """Whether `grouped_product` takes the shape."""
    return weight_ECF.shape[1] % 8 == 0 and weight_ECF.shape[2] % 8 == 0


def capacity_experts(routed: Routed, capacity_factor: float) -> Tensor:
    """Drop-and-pad: every expert takes C = ceil(factor * N A / E) pairs in token order; later ones add nothing."""
    x_ND, experts_NA, weights_NA, gate_up_ED2F, down_EFD, before_down, _ = routed
    (tokens, active), experts = experts_NA.shape, gate_up_ED2F.shape[0]
    capacity = math.ceil(capacity_factor * tokens * active / experts)
    expert_P = experts_NA.flatten()
    order_P = expert_P.argsort(stable=True)
    load_E = load_of(experts_NA, experts)
    first_E = load_E.cumsum(0) - load_E
    sorted_P = expert_P[order_P]
    rank_P = torch.arange(len(order_P), device=order_P.device) - first_E[sorted_P]  # place in its expert's queue
    kept_P = rank_P < capacity
    pair_Q, slot_Q = order_P[kept_P], sorted_P[kept_P] * capacity + rank_P[kept_P]
    x_SD = x_ND.new_zeros(experts * capacity, x_ND.shape[1]).index_copy(
        0, slot_Q, x_ND.index_select(0, pair_Q // active)
    )
    act_ECF = swiglu(x_SD.unflatten(0, (experts, capacity)) @ gate_up_ED2F.to(x_ND.dtype))
    out_SD = (before_down(act_ECF) @ down_EFD.to(x_ND.dtype)).flatten(0, 1)
    out_PD = out_SD.new_zeros(tokens * active, x_ND.shape[1]).index_copy(0, pair_Q, out_SD.index_select(0, slot_Q))
    return torch.einsum("nad,na->nd", out_PD.unflatten(0, (tokens, active)), weights_NA.to(out_PD.dtype))


Compute = Callable[[Tensor, Tensor, Tensor, "int | None"], Tensor]  # of x_ND, experts_NA, weights_NA and `Routed.pairs`


class Experts(nn.Module):
    """The routed experts' weights, gate_up_ED2F and down_EFD, under the names of the checkpoint.

    `capacity_factor` None is dropless; a number is drop-and-pad, in training only. `before_down` is that of `Routed`.
    Where other processes hold other experts, `exchange` brings their tokens to these and gives them the sums
    (`train/parallel/expert_parallel.py`).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        experts, hidden, width = config.num_local_experts, config.hidden_size, config.intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, hidden, 2 * width))
        self.down_proj = nn.Parameter(torch.empty(experts, width, hidden))
        self.capacity_factor: float | None = None

    before_down: Callable[[Tensor], Tensor] = staticmethod(unchanged)
    exchange: Callable[[Compute, Tensor, Tensor, Tensor], Tensor] | None = None

    def weights(self) -> tuple[Tensor, Tensor]:
        """gate_up_ED2F and down_EFD as the products take them; quantisation-aware training overrides it."""
        return self.here(self.gate_up_proj), self.here(self.down_proj)

    def here(self, weight: Tensor) -> Tensor:
        """The part of the weight that this process holds: a DTensor's own, where other processes hold other experts."""
        return weight if self.exchange is None else weight.to_local()  # type: ignore[attr-defined]

    def forward(self, x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor, more: Sequence[Tensor] = ()) -> Tensor:
        """The experts' weighted sums y_ND, and `more` added."""
        gate_up_ED2F, down_EFD = self.weights()

        def compute(
            x_ND: Tensor,
            experts_NA: Tensor,
            weights_NA: Tensor,
            pairs: int | None = None,
            more: Sequence[Tensor] = (),
        ) -> Tensor:
            routed = Routed(x_ND, experts_NA, weights_NA, gate_up_ED2F, down_EFD, self.before_down, pairs)
            if self.training and self.capacity_factor is not None:
                return plus(capacity_experts(routed, self.capacity_factor), more)
            bf16 = x_ND.dtype == torch.bfloat16 and is_aligned(gate_up_ED2F) and is_aligned(down_EFD)
            if bf16 and kernels.usable(x_ND):
                return fused_experts(routed, more)
            return plus(grouped_experts(routed), more)

        if self.exchange is None:
            return compute(x_ND, experts_NA, weights_NA, more=more)
        return plus(self.exchange(compute, x_ND, experts_NA, weights_NA), more)
