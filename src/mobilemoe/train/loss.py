"""Losses: next-token cross-entropy that never holds all logits in memory, and the router's z-loss.

N tokens, D hidden, V vocabulary, E experts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mobilemoe.data.packing import NO_TARGET
from mobilemoe.model import kernels
from mobilemoe.model.linear import product_in_fp32
from mobilemoe.model.router import Routing

CHUNK = 512  # tokens whose logits exist at a time: 33 MB in fp32 at a 16k vocabulary
GPU_LOGITS = 2**31  # at a time in bf16, 4 GB: large chunks, since each one adds to the head's large gradient


class _CrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies. `forward` also computes the gradients, chunk by chunk, so that no logits are kept."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        dx_ND, dhead_VD = ctx.saved_tensors
        if dhead_VD is not None:
            dhead_VD = torch.mul(dhead_VD, grads[0], out=torch.empty_like(dhead_VD, dtype=ctx.head_dtype))
        return dx_ND * grads[0].to(dx_ND.dtype), dhead_VD, None


class _FusedCrossEntropy(_CrossEntropy):
    """`_ChunkedCrossEntropy` in bf16 on a GPU: one kernel turns a chunk's logits into their gradient."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> Tensor:
        from mobilemoe.model.kernels.cross_entropy import cross_entropy_in_place

        compute_VD = head_VD.to(x_ND.dtype)
        loss = torch.zeros((), dtype=torch.float64, device=x_ND.device)
        dx_ND = torch.empty_like(x_ND)
        dhead_VD: Tensor | None = None
        parts = -(-len(x_ND) * len(head_VD) // GPU_LOGITS)
        for x_CD, targets_C, dx_CD in zip(*(tensor.chunk(parts) for tensor in (x_ND, targets_N, dx_ND)), strict=True):
            grad_CV = x_CD @ compute_VD.t()
            losses_C, inverses_C = cross_entropy_in_place(grad_CV, targets_C)
            loss += losses_C.sum(dtype=torch.float64)
            torch.mul(product_in_fp32(grad_CV, compute_VD), inverses_C.unsqueeze(1), out=dx_CD)
            if ctx.needs_input_grad[1]:  # a frozen head needs none
                scaled_CD = x_CD * inverses_C.unsqueeze(1).to(x_CD.dtype)
                dhead_VD = product_in_fp32(grad_CV.t(), scaled_CD, dhead_VD)
        ctx.save_for_backward(dx_ND, dhead_VD)
        ctx.head_dtype = head_VD.dtype
        return loss.float()


class _ChunkedCrossEntropy(_CrossEntropy):
    """The loss in plain PyTorch operations, on any device and in any precision."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> Tensor:
        loss = torch.zeros((), dtype=torch.float64, device=x_ND.device)
        dx_ND = torch.zeros_like(x_ND)
        compute_VD = head_VD.to(x_ND.dtype)
        wide = torch.promote_types(head_VD.dtype, torch.float32)  # sums of a bf16 head would be rounded to bf16
        dhead_VD = torch.zeros_like(head_VD, dtype=wide) if ctx.needs_input_grad[1] else None
        for start in range(0, len(x_ND), CHUNK):
            x_CD, targets_C = x_ND[start : start + CHUNK], targets_N[start : start + CHUNK]
            kept_C = targets_C != NO_TARGET
            logits_CV = (x_CD @ compute_VD.t()).to(wide)
            log_sum_C = logits_CV.logsumexp(dim=-1)
            rows_C = torch.arange(len(targets_C), device=x_ND.device)
            safe_C = targets_C.clamp(min=0)
            loss += ((log_sum_C - logits_CV[rows_C, safe_C]) * kept_C).sum()
            # d loss / d logits = softmax - one hot, where there is a target
            grad_CV = logits_CV.sub_(log_sum_C.unsqueeze(1)).exp_()
            grad_CV[rows_C, safe_C] -= 1
            grad_CV = grad_CV.mul_(kept_C.unsqueeze(1)).to(x_ND.dtype)
            dx_ND[start : start + CHUNK] = grad_CV @ compute_VD
            if dhead_VD is not None:
                dhead_VD += grad_CV.t() @ x_CD
        ctx.save_for_backward(dx_ND, dhead_VD)
        ctx.head_dtype = head_VD.dtype
        return loss.to(wide)


def cross_entropy_sum(x_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Sum over tokens of -log softmax(x head^T)[target], in nats; targets of -100 count nothing.

    The logits are computed in the dtype of x and summed up in at least fp32.
    """
    fused = x_ND.dtype == torch.bfloat16 and kernels.usable(x_ND)
    function = _FusedCrossEntropy if fused else _ChunkedCrossEntropy
    result: Tensor = function.apply(x_ND, head_VD, targets_N)  # type: ignore[no-untyped-call]
    return result


def router_z_loss(routings: list[Routing]) -> Tensor:
    """Mean over tokens of logsumexp(router logits)^2, summed over layers: keeps the logits small."""
    return torch.stack([routing.logits_NE.logsumexp(dim=-1).square().mean() for routing in routings]).sum()
