"""Muon: each hidden matrix is updated with its orthogonalised momentum; AdamW updates everything else.

Muon keeps the singular vectors of a matrix's momentum and makes its singular values equal (Jordan et al., "Muon: An
optimizer for hidden layers in neural networks", 2024). The steps are scaled to the size of AdamW's, so that learning
rates and weight decay can be kept (arXiv 2502.16982, section 2.2).

M matrices, R rows, C columns, E experts, D hidden, F expert width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from mobilemoe.errors import ConfigError
from mobilemoe.train.recipe import TrainTable

MOMENTUM = 0.95
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of x, x x^T x and (x x^T)^2 x; Jordan's choice, fast rather than exact
ADAMW_RMS = 0.2  # root mean square of an AdamW step at a learning rate of 1, as the report found it
SCALE = "_scale"  # how the names of learnt INT4 scales end
SCALE_RATE = 0.1  # of the learning rate: a scale moves 32 weights at once
_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_MATRICES = (*(f".{linear}.weight" for linear in _LINEARS), ".experts.down_proj")
_GATE_UP = ".experts.gate_up_proj"


def make_muon(model: nn.Module, train: TrainTable) -> Muon:
    """Muon for attention, FFN, shared and routed experts; AdamW for embedding, head, router, norms and the rest.

    Raises ConfigError for a model whose matrices are in pieces, each held by another process.
    """
    learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if any(isinstance(parameter, DTensor) for parameter in learning.values()):
        raise ConfigError("train.optimizer is 'muon', which needs whole matrices: on several processes use 'adamw'")
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
        directions = [_direction(optimizer, parameter) for parameter in alike]
        # Gate and up are two matrices in one tensor. Orthogonalised as one matrix, the update of each would depend on
        # the other's.
        x_MRC = torch.cat([half for direction in directions for half in direction.chunk(group["halves"], dim=-1)])
        compute = torch.bfloat16 if x_MRC.is_cuda else torch.float32  # bf16 is precise enough, but slow on most CPUs
        update_MRC = orthogonalize(x_MRC.to(compute)).to(x_MRC.dtype)
        scale = ADAMW_RMS * math.sqrt(max(update_MRC.shape[1:]))
        halves = iter(update_MRC.chunk(len(alike) * group["halves"]))
        for parameter in alike:
            update = torch.cat([next(halves) for _ in range(group["halves"])], dim=-1).view_as(parameter)
            kept = 1 - group["lr"] * group["weight_decay"]
            if optimizer.found_inf is None:
                parameter.mul_(kept)
            else:
                broken = optimizer.found_inf > 0
                parameter.mul_(torch.where(broken, 1.0, kept))
                update = update.masked_fill(broken, 0.0)
            parameter.add_(update, alpha=-group["lr"] * scale)


def _alike(parameters: list[Tensor]) -> list[list[Tensor]]:
    """Parameters with gradients, grouped so that each group is orthogonalised by batched products: matrices of equal
    shape from all layers together, and each expert tensor by itself, since it is a batch already."""
    batches: dict[object, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            batches.setdefault(parameter.shape if parameter.ndim == 2 else id(parameter), []).append(parameter)
    return list(batches.values())


def _direction(optimizer: Muon, parameter: Tensor) -> Tensor:
    """Adds the gradient to the momentum and returns the Nesterov direction, [1 or E, R, C]."""
    assert parameter.grad is not None  # _alike saw it
    state = optimizer.state[parameter]
    if not state:
        state["momentum"] = torch.zeros_like(parameter)
    gradient = parameter.grad
    if optimizer.found_inf is not None:
        gradient = torch.where(optimizer.found_inf > 0, state["momentum"], gradient)  # which leaves the momentum alone
    state["momentum"].lerp_(gradient, 1 - MOMENTUM)
    direction = gradient.lerp(state["momentum"], MOMENTUM)
    return direction if direction.ndim == 3 else direction.unsqueeze(0)


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
        parameters,
        [parameter.grad for parameter in parameters],
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
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
