"""Moves rows to their experts' slots and back, and computes SwiGLU with the routing weight in between.

N tokens, D hidden, F expert width, A active experts per token, P = N A slots sorted by expert (`routing.Slots`).
Neither direction adds with atomics: a token's sum gathers its A slots, in the order of its choices.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from mobilemoe.model.kernels import launcher

_ROWS, _COLS = 8, 256  # a tile


@triton.jit  # type: ignore[untyped-decorator]
def _gather_kernel(x, out, pair_of, slots, width, A: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):  # type: ignore[no-untyped-def]
    slot = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = (slot[:, None] < slots) & (col[None, :] < width)
    token = tl.load(pair_of + slot, mask=slot < slots, other=0).to(tl.int64) // A
    value = tl.load(x + token[:, None] * width + col[None, :], mask=inside)
    tl.store(out + slot[:, None].to(tl.int64) * width + col[None, :], value, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _sum_kernel(y, out, slot_of, tokens, width, A: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):  # type: ignore[no-untyped-def]
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = (token[:, None] < tokens) & (col[None, :] < width)
    total = tl.zeros((ROWS, COLS), tl.float32)
    for a in tl.static_range(A):
        slot = tl.load(slot_of + token * A + a, mask=token < tokens, other=0).to(tl.int64)
        total += tl.load(y + slot[:, None] * width + col[None, :], mask=inside, other=0.0).to(tl.float32)
    out_at = out + token[:, None].to(tl.int64) * width + col[None, :]
    tl.store(out_at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _swiglu_kernel(h, weights, pair_of, act, slots, F, ROWS: tl.constexpr, COLS: tl.constexpr):  # type: ignore[no-untyped-def]
    slot = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = (slot[:, None] < slots) & (col[None, :] < F)
    pair = tl.load(pair_of + slot, mask=slot < slots, other=0)
    weight = tl.load(weights + pair, mask=slot < slots, other=0.0)
    gate_at = h + slot[:, None].to(tl.int64) * (2 * F) + col[None, :]
    gate = tl.load(gate_at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_at + F, mask=inside, other=0.0).to(tl.float32)
    value = gate * tl.sigmoid(gate) * up * weight[:, None]
    tl.store(act + slot[:, None].to(tl.int64) * F + col[None, :], value.to(act.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _swiglu_backward_kernel(  # type: ignore[no-untyped-def]
    dact, h, weights, pair_of, dh, dweights, slots, F: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    slot = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = slot[:, None].to(tl.int64)
    pair = tl.load(pair_of + slot, mask=slot < slots, other=0)
    weight = tl.load(weights + pair, mask=slot < slots, other=0.0)[:, None]
    dweight = tl.zeros((ROWS,), tl.float32)
    for first in range(0, F, COLS):
        col = first + tl.arange(0, COLS)[None, :]
        inside = (slot[:, None] < slots) & (col < F)
        gate = tl.load(h + row * (2 * F) + col, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(h + row * (2 * F) + F + col, mask=inside, other=0.0).to(tl.float32)
        d = tl.load(dact + row * F + col, mask=inside, other=0.0).to(tl.float32)
        sigmoid = tl.sigmoid(gate)
        silu = gate * sigmoid
        dweight += tl.sum(d * silu * up, axis=1)
        dgate = d * weight * up * (sigmoid + silu * (1 - sigmoid))
        dup = d * weight * silu
        tl.store(dh + row * (2 * F) + col, dgate.to(dh.dtype.element_ty), mask=inside)
        tl.store(dh + row * (2 * F) + F + col, dup.to(dh.dtype.element_ty), mask=inside)
    tl.store(dweights + pair, dweight, mask=slot < slots)


def _tiles(rows: int, width: int) -> tuple[int, int]:
    return triton.cdiv(rows, _ROWS), triton.cdiv(width, _COLS)


@torch.library.triton_op("mobilemoe::gather_rows", mutates_args=())
def gather_rows(x_ND: Tensor, pair_P: Tensor, slot_P: Tensor) -> Tensor:
    """x_PD: each slot's token."""
    (tokens, width), slots = x_ND.shape, len(pair_P)
    x_PD = x_ND.new_empty(slots, width)
    launcher(_gather_kernel)[_tiles(slots, width)](
        x_ND.contiguous(), x_PD, pair_P, slots, width, A=slots // tokens, ROWS=_ROWS, COLS=_COLS
    )
    return x_PD


@torch.library.triton_op("mobilemoe::sum_rows", mutates_args=())
def sum_rows(y_PD: Tensor, pair_P: Tensor, slot_P: Tensor, active: int) -> Tensor:
    """y_ND: the sum of each token's A slots, accumulated in fp32."""
    slots, width = y_PD.shape
    tokens = slots // active
    y_ND = y_PD.new_empty(tokens, width)
    launcher(_sum_kernel)[_tiles(tokens, width)](
        y_PD.contiguous(), y_ND, slot_P, tokens, width, A=active, ROWS=_ROWS, COLS=_COLS
    )
    return y_ND


@torch.library.triton_op("mobilemoe::weighted_swiglu", mutates_args=())
def weighted_swiglu(h_P2F: Tensor, weights_NA: Tensor, pair_P: Tensor) -> Tensor:
    """act_PF = silu(gate) * up * routing weight (fp32) of the slot's pair."""
    slots, width = len(h_P2F), h_P2F.shape[1] // 2
    act_PF = h_P2F.new_empty(slots, width)
    launcher(_swiglu_kernel)[_tiles(slots, width)](
        h_P2F.contiguous(), weights_NA.contiguous(), pair_P, act_PF, slots, width, ROWS=_ROWS, COLS=_COLS
    )
    return act_PF


@torch.library.triton_op("mobilemoe::weighted_swiglu_backward", mutates_args=())
def _weighted_swiglu_backward(
    dact_PF: Tensor, h_P2F: Tensor, weights_NA: Tensor, pair_P: Tensor
) -> tuple[Tensor, Tensor]:
    slots, width = dact_PF.shape
    dh_P2F, dweights_NA = torch.empty_like(h_P2F), torch.empty_like(weights_NA)
    launcher(_swiglu_backward_kernel)[(triton.cdiv(slots, _ROWS),)](
        dact_PF.contiguous(), h_P2F, weights_NA, pair_P, dh_P2F, dweights_NA, slots, F=width, ROWS=_ROWS, COLS=_COLS
    )
    return dh_P2F, dweights_NA


def _save_gather(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    x_ND, pair_P, slot_P = inputs
    ctx.save_for_backward(pair_P, slot_P)
    ctx.active = len(pair_P) // len(x_ND)


def _gather_backward(ctx: Any, dx_PD: Tensor) -> tuple[Tensor, None, None]:
    return sum_rows(dx_PD, *ctx.saved_tensors, ctx.active), None, None


def _save_sum(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:3])


def _sum_backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor, None, None, None]:
    return gather_rows(dy_ND, *ctx.saved_tensors), None, None, None


def _save_swiglu(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*(tensor.contiguous() for tensor in inputs))


def _swiglu_backward(ctx: Any, dact_PF: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_weighted_swiglu_backward(dact_PF, *ctx.saved_tensors), None


gather_rows.register_autograd(_gather_backward, setup_context=_save_gather)
sum_rows.register_autograd(_sum_backward, setup_context=_save_sum)
weighted_swiglu.register_autograd(_swiglu_backward, setup_context=_save_swiglu)
