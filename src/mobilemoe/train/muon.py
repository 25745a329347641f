"""Muon: each hidden matrix is updated with its orthogonalised momentum; AdamW updates everything else.

Muon keeps the singular vectors of a matrix's momentum and makes its singular values equal (Jordan et al., "Muon: An
optimizer for hidden layers in neural networks", 2024). The steps are scaled to the size of AdamW's, so that learning
rates and weight decay can be kept (arXiv 2502.16982, section 2.2).

M matrices, R rows, C columns, E experts, D hidden, F expert width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Placement, Replicate
from torch.optim.adamw import adamw

from mobilemoe.train.parallel.replicas import updated
from mobilemoe.train.recipe import TrainTable

MOMENTUM = 0.95
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of x, x x^T x and (x x^T)^2 x; Jordan's choice, fast rather than exact
ADAMW_RMS = 0.2  # root mean square of an AdamW step at a learning rate of 1, as the report found it
SCALE = "_scale"  # how the names of learnt INT4 scales end
SCALE_RATE = 0.1  # of the learning rate: a scale moves 32 weights at once
_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "in_proj", "first_proj")
_MATRICES = (*(f".{linear}.weight" for linear in _LINEARS), ".experts.down_proj")
_GATE_UP = ".experts.gate_up_proj"


def make_muon(model: nn.Module, train: TrainTable) -> Muon:
    """Muon for attention, FFN, shared and routed experts; AdamW for embedding, head, router, norms and the rest."""
    learning = {name: updated(parameter) for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups: list[dict[str, Any]] = [
        {"rule": "muon", "halves": 1, "weight_decay": train.weight_decay, "params": []},
        {"rule": "muon", "halves": 2, "weight_decay": train.weight_decay, "params": []},
        {"rule": "adamw", "weight_decay": train.weight_decay, "params": []},
        {"rule": "adamw", "weight_decay": 0.0, "params": []},  # norms, whose rest is 1 and not 0
        {"rule": "adamw", "weight_decay": 0.0, "factor": SCALE_RATE, "params": []},
    ]
    for name, parameter in learning.items():
        if name.endswith(_MATRICES):
            group = 0
        elif name.endswith(_GATE_UP):
            group = 1
        elif name.endswith(SCALE):
            group = 4
        else:
            group = 2 if parameter.ndim > 1 else 3
        groups[group]["params"].append(parameter)
    return Muon(groups, train)


class Muon(torch.optim.Optimizer):
    """Groups of rule "muon" hold matrices [R, C] or [E, R, C], of `halves` side by side; those of "adamw" anything.

    State: `momentum` of each matrix; `step`, `exp_avg` and `exp_avg_sq` of the others, as AdamW has them.
    Where several processes hold parts of the weights, each orthogonalises the experts that it holds whole. Of other
    matrices it gathers the momentum, and keeps its part of the result.
    Where `found_inf` (0 or 1, on the device) is 1, `step` changes nothing; the fused AdamW has the same convention.
    """

    found_inf: Tensor | None = None

    def __init__(self, groups: list[dict[str, Any]], train: TrainTable) -> None:
        super().__init__(groups, {"lr": train.learning_rate, "betas": train.betas, "eps": train.eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates every weight that has a gradient. The closure is ignored."""
        for group in self.param_groups:
            (_muon_step if group["rule"] == "muon" else _adamw_step)(self, group)


def orthogonalize(x_MRC: Tensor) -> Tensor:
    """For each matrix U S V^T approximately U V^T: singular values in 0.6 to 1.3, except those that were nearly zero.

    Newton-Schulz: each iteration maps a singular value s to a s + b s^3 + c s^5, by products of matrices only.
    """
    if x_MRC.shape[1] > x_MRC.shape[2]:
        return orthogonalize(x_MRC.mT).mT  # the products with itself are smaller on this side
    a, b, c = COEFFICIENTS
    norm_M11 = torch.linalg.vector_norm(x_MRC, dim=(1, 2), keepdim=True, dtype=torch.float32)
    x_MRC = x_MRC / norm_M11.clamp(min=1e-7).to(x_MRC.dtype)
    for _ in range(ITERATIONS):
        gram_MRR = x_MRC @ x_MRC.mT
        x_MRC = torch.baddbmm(x_MRC, torch.baddbmm(gram_MRR, gram_MRR, gram_MRR, beta=b, alpha=c), x_MRC, beta=a)
    return x_MRC


def _muon_step(optimizer: Muon, group: dict[str, Any]) -> None:
    for alike in _alike(group["params"]):
        directions = [_whole(_direction(optimizer, parameter), parameter) for parameter in alike]
        # Gate and up are two matrices in one tensor. Orthogonalised as one matrix, the update of each would depend on
        # the other's.
        halves_MRC = [half for whole in directions for half in _matrices(whole).chunk(group["halves"], dim=-1)]
        x_MRC = torch.cat(halves_MRC)
        compute = torch.bfloat16 if x_MRC.is_cuda else torch.float32  # bf16 is precise enough, but slow on most CPUs
        update_MRC = orthogonalize(x_MRC.to(compute)).to(x_MRC.dtype)
        scale = ADAMW_RMS * math.sqrt(max(update_MRC.shape[1:]))
        halves = iter(update_MRC.chunk(len(alike) * group["halves"]))
        for parameter, direction in zip(alike, directions, strict=True):
            update = torch.cat([next(halves) for _ in range(group["halves"])], dim=-1).view_as(direction)
            update, weight = _part(update, parameter), _local(parameter)
            kept = 1 - group["lr"] * group["weight_decay"]
            if optimizer.found_inf is None:
                weight.mul_(kept)
            else:
                broken = optimizer.found_inf > 0
                weight.mul_(torch.where(broken, 1.0, kept))
                update = update.masked_fill(broken, 0.0)
            weight.add_(update, alpha=-group["lr"] * scale)


def _local(tensor: Tensor) -> Tensor:
    """What this process holds of a weight, its gradient or its moments; it shares their memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _matrices(x: Tensor) -> Tensor:
    """A matrix as a batch of one, [M, R, C]; experts as they are."""
    return x if x.ndim == 3 else x.unsqueeze(0)


def _whole(part: Tensor, parameter: Tensor) -> Tensor:
    """The whole matrices that this process's `part` belongs to, of all that `parameter` stands for; see `_part`."""
    if not isinstance(parameter, DTensor):
        return part
    return _redistributed(part, parameter, parameter.placements, _whole_placements(parameter))


def _part(whole: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of what `_whole` gave; nothing is sent."""
    if not isinstance(parameter, DTensor):
        return whole
    return _redistributed(whole, parameter, _whole_placements(parameter), parameter.placements)


def _redistributed(x: Tensor, like: DTensor, before: Sequence[Placement], after: Sequence[Placement]) -> Tensor:
    placed = DTensor.from_local(x, like.device_mesh, before, run_check=False, shape=like.shape, stride=like.stride())
    return placed.redistribute(placements=after).to_local()


def _whole_placements(parameter: DTensor) -> list[Placement]:
    """Experts that are split by expert are whole matrices already; everything else comes together."""
    by_expert = parameter.ndim == 3
    return [place if by_expert and place.is_shard(0) else Replicate() for place in parameter.placements]


def _alike(parameters: list[Tensor]) -> list[list[Tensor]]:
    """Parameters with gradients, grouped so that each group is orthogonalised by batched products: matrices of equal
    shape from all layers together, and each expert tensor by itself, since it is a batch already."""
    batches: dict[object, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            batches.setdefault(parameter.shape if parameter.ndim == 2 else id(parameter), []).append(parameter)
    return list(batches.values())


def _direction(optimizer: Muon, parameter: Tensor) -> Tensor:
    """Adds the gradient to the momentum and returns the Nesterov direction, of what this process holds."""
    assert parameter.grad is not None  # _alike saw it
    state = optimizer.state[parameter]
    if not state:
        state["momentum"] = torch.zeros_like(parameter)
    gradient, momentum = _local(parameter.grad), _local(state["momentum"])
    if optimizer.found_inf is not None:
        gradient = torch.where(optimizer.found_inf > 0, momentum, gradient)  # which leaves the momentum alone
    momentum.lerp_(gradient, 1 - MOMENTUM)
    return gradient.lerp(momentum, MOMENTUM)


def _adamw_step(optimizer: Muon, group: dict[str, Any]) -> None:
    parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
    for parameter in parameters:
        if not optimizer.state[parameter]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    states = [optimizer.state[parameter] for parameter in parameters]
    adamw(
        [_local(parameter) for parameter in parameters],
        [_local(parameter.grad) for parameter in parameters],
        [_local(state["exp_avg"]) for state in states],
        [_local(state["exp_avg_sq"]) for state in states],
        [],
        [state["step"] for state in states],
        fused=True,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
        found_inf=optimizer.found_inf,
    )
