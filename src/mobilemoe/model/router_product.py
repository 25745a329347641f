"""The router's product on a GPU, by itself and together with the shared expert's.

N tokens, D hidden, E experts, W width of the shared expert.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mobilemoe.model.linear import product_in_fp32


def _logits(x_ND: Tensor, weight_ED: Tensor) -> Tensor:
    """x weight^T of a bf16 x with the precision of fp32, computed on bf16 matrix units.

    An fp32 weight is split into a sum of three bf16 numbers, which hold all its 24 bits, and products are accumulated
    in fp32.
    """
    rest_ED = _pad_rows(weight_ED.float())
    pieces = [rest_ED.to(torch.bfloat16)]
    while weight_ED.dtype != torch.bfloat16 and len(pieces) < 3:
        rest_ED = rest_ED - pieces[-1]
        pieces.append(rest_ED.to(torch.bfloat16))
    product = product_in_fp32(x_ND, torch.cat(pieces).t())
    high_NE, *lower = product.chunk(len(pieces), dim=1)
    total_NE = high_NE + (lower[0] + lower[1]) if lower else high_NE
    return total_NE[:, : len(weight_ED)].contiguous()


def _padding(experts: int) -> int:
    """How many experts of zeros to add, since matrix units take multiples of 8."""
    return -experts % 8


def _pad_rows(x_ED: Tensor) -> Tensor:
    return nn.functional.pad(x_ED, (0, 0, 0, _padding(len(x_ED))))


def _pad_columns(x_NE: Tensor) -> Tensor:
    return nn.functional.pad(x_NE, (0, _padding(x_NE.shape[1])))


@torch.library.custom_op("mobilemoe::split_product", mutates_args=())
def split_product(x_ND: Tensor, weight_ED: Tensor) -> Tensor:
    """`_logits`; gradients are rounded to bf16, as those of every other matrix."""
    return _logits(x_ND, weight_ED)


@split_product.register_fake
def _(x_ND: Tensor, weight_ED: Tensor) -> Tensor:
    return x_ND.new_empty(len(x_ND), len(weight_ED), dtype=torch.float32)


def _save_factors(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _split_product_backward(ctx: Any, grad_NE: Tensor) -> tuple[Tensor, Tensor]:
    x_ND, weight_ED = ctx.saved_tensors
    grad_NE = _pad_columns(grad_NE.to(x_ND.dtype))
    dweight_ED = (grad_NE.t() @ x_ND)[: len(weight_ED)].to(weight_ED.dtype)
    return grad_NE @ _pad_rows(weight_ED.to(x_ND.dtype)), dweight_ED


split_product.register_autograd(_split_product_backward, setup_context=_save_factors)


@torch.library.custom_op("mobilemoe::shared_and_router", mutates_args=())
def shared_and_router(x_ND: Tensor, gate_WD: Tensor, up_WD: Tensor, router_ED: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The shared expert's silu(gate) * up, act_NW, and the router's logits_NE; last what the backward pass needs.

    The gradients of all three matrices lie side by side, so that each of the backward pass's two products is one.
    """
    from mobilemoe.model.kernels import rows

    gate_up_N2W = x_ND @ torch.cat((gate_WD, up_WD)).to(x_ND.dtype).t()
    return rows.swiglu(gate_up_N2W), _logits(x_ND, router_ED), gate_up_N2W


@shared_and_router.register_fake
def _(x_ND: Tensor, gate_WD: Tensor, up_WD: Tensor, router_ED: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    (tokens, _), width = x_ND.shape, len(gate_WD)
    logits_NE = x_ND.new_empty(tokens, len(router_ED), dtype=torch.float32)
    return x_ND.new_empty(tokens, width), logits_NE, x_ND.new_empty(tokens, 2 * width)


@torch.library.custom_op("mobilemoe::shared_and_router_backward", mutates_args=())
def _shared_and_router_backward(
    dact_NW: Tensor,
    dlogits_NE: Tensor,
    gate_up_N2W: Tensor,
    x_ND: Tensor,
    gate_WD: Tensor,
    up_WD: Tensor,
    router_ED: Tensor,
) -> tuple[Tensor, Tensor]:
    """dx_ND, and the gradients of gate, up and the padded router one below the other."""
    from mobilemoe.model.kernels import rows

    weight_RD = torch.cat((gate_WD, up_WD, _pad_rows(router_ED))).to(x_ND.dtype)
    gates = gate_up_N2W.shape[1]
    grad_NR = x_ND.new_empty(len(x_ND), len(weight_RD))
    rows.swiglu_backward(dact_NW, gate_up_N2W, grad_NR[:, :gates])
    grad_NR[:, gates:] = _pad_columns(dlogits_NE)
    return grad_NR @ weight_RD, grad_NR.t() @ x_ND


@_shared_and_router_backward.register_fake
def _(
    dact_NW: Tensor,
    dlogits_NE: Tensor,
    gate_up_N2W: Tensor,
    x_ND: Tensor,
    gate_WD: Tensor,
    up_WD: Tensor,
    router_ED: Tensor,
) -> tuple[Tensor, Tensor]:
    rows = gate_up_N2W.shape[1] + len(router_ED) + _padding(len(router_ED))
    return torch.empty_like(x_ND), x_ND.new_empty(rows, x_ND.shape[1])


def _save_shared(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    ctx.save_for_backward(output[2], *inputs)


def _shared_backward(ctx: Any, dact_NW: Tensor, dlogits_NE: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    _, _, gate_WD, up_WD, router_ED = ctx.saved_tensors
    dx_ND, dweight_RD = _shared_and_router_backward(dact_NW, dlogits_NE, *ctx.saved_tensors)
    parts = dweight_RD.split([len(gate_WD), len(up_WD), len(dweight_RD) - len(gate_WD) - len(up_WD)])
    weights = zip(parts, (gate_WD, up_WD, router_ED), strict=True)
    return dx_ND, *(part[: len(weight)].to(weight.dtype) for part, weight in weights)


shared_and_router.register_autograd(_shared_backward, setup_context=_save_shared)
