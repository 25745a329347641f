"""Moves rows to their experts' slots and back, and computes SwiGLU with the routing weight in between.

N tokens, D hidden, F expert width, A active experts per token, P = N A slots sorted by expert (`routing.Slots`).
Neither direction adds with atomics: a token's sum gathers its A slots, in the order of its choices.

A process that holds only some of the experts makes room for the first R <= P slots. Those that count end at the last of
`ends_E`, which only the device knows; rows after it hold anything, and nothing reads them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from mobilemoe.model.kernels import launcher

_ROWS, _COLS = 16, 128  # a tile; the widths of S, M and L are multiples of 128


@triton.jit  # type: ignore[untyped-decorator]
def _gather_kernel(x, out, pair_of, slots, width, A: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):  # type: ignore[no-untyped-def]
    slot = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = (slot[:, None] < slots) & (col[None, :] < width)
    token = tl.load(pair_of + slot, mask=slot < slots, other=0).to(tl.int64) // A
    value = tl.load(x + token[:, None] * width + col[None, :], mask=inside)
    tl.store(out + slot[:, None].to(tl.int64) * width + col[None, :], value, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _sum_kernel(y, out, slot_of, end, tokens, width, A: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):  # type: ignore[no-untyped-def]
    slots = tl.load(end)
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = (token[:, None] < tokens) & (col[None, :] < width)
    total = tl.zeros((ROWS, COLS), tl.float32)
    for a in tl.static_range(A):
        slot = tl.load(slot_of + token * A + a, mask=token < tokens, other=0).to(tl.int64)
        counts = inside & (slot < slots)[:, None]
        total += tl.load(y + slot[:, None] * width + col[None, :], mask=counts, other=0.0).to(tl.float32)
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
    dact, h, weights, pair_of, end, dh, dweights, rows, F: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    slots = tl.minimum(tl.load(end), rows)
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
def gather_rows(x_ND: Tensor, pair_R: Tensor, slot_P: Tensor, ends_E: Tensor) -> Tensor:
    """x_RD: each slot's token."""
    (tokens, width), slots = x_ND.shape, len(pair_R)
    x_RD = x_ND.new_empty(slots, width)
    launcher(_gather_kernel)[_tiles(slots, width)](
        x_ND.contiguous(), x_RD, pair_R, slots, width, A=len(slot_P) // tokens, ROWS=_ROWS, COLS=_COLS
    )
    return x_RD


@torch.library.triton_op("mobilemoe::sum_rows", mutates_args=())
def sum_rows(y_RD: Tensor, pair_R: Tensor, slot_P: Tensor, ends_E: Tensor, active: int) -> Tensor:
    """y_ND: the sum of each token's A slots, those that count, accumulated in fp32."""
    width, tokens = y_RD.shape[1], len(slot_P) // active
    y_ND = y_RD.new_empty(tokens, width)
    launcher(_sum_kernel)[_tiles(tokens, width)](
        y_RD.contiguous(), y_ND, slot_P, ends_E[-1:], tokens, width, A=active, ROWS=_ROWS, COLS=_COLS
    )
    return y_ND


@torch.library.triton_op("mobilemoe::weighted_swiglu", mutates_args=())
def weighted_swiglu(h_R2F: Tensor, weights_NA: Tensor, pair_R: Tensor, ends_E: Tensor) -> Tensor:
    """act_RF = silu(gate) * up * routing weight (fp32) of the slot's pair."""
    slots, width = len(h_R2F), h_R2F.shape[1] // 2
    act_RF = h_R2F.new_empty(slots, width)
    launcher(_swiglu_kernel)[_tiles(slots, width)](
        h_R2F.contiguous(), weights_NA.contiguous(), pair_R, act_RF, slots, width, ROWS=_ROWS, COLS=_COLS
    )
    return act_RF


@torch.library.triton_op("mobilemoe::weighted_swiglu_backward", mutates_args=())
def _weighted_swiglu_backward(
    dact_RF: Tensor, h_R2F: Tensor, weights_NA: Tensor, pair_R: Tensor, ends_E: Tensor
) -> tuple[Tensor, Tensor]:
    slots, width = dact_RF.shape
    dh_R2F = torch.empty_like(h_R2F)
    # A pair without a slot that counts has no part in the result.
    dweights_NA = torch.empty_like(weights_NA) if slots == weights_NA.numel() else torch.zeros_like(weights_NA)
    launcher(_swiglu_backward_kernel)[(triton.cdiv(slots, _ROWS),)](
        dact_RF.contiguous(),
        h_R2F,
        weights_NA,
        pair_R,
        ends_E[-1:],
        dh_R2F,
        dweights_NA,
        slots,
        F=width,
        ROWS=_ROWS,
        COLS=_COLS,
    )
    return dh_R2F, dweights_NA


def _save_gather(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: Tensor) -> None:
    x_ND, pair_R, slot_P, ends_E = inputs
    ctx.save_for_backward(pair_R, slot_P, ends_E)
    ctx.active = len(slot_P) // len(x_ND)


def _gather_backward(ctx: Any, dx_RD: Tensor) -> tuple[Tensor, None, None, None]:
    return sum_rows(dx_RD, *ctx.saved_tensors, ctx.active), None, None, None


def _save_sum(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:4])


def _sum_backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor, None, None, None, None]:
    return gather_rows(dy_ND, *ctx.saved_tensors), None, None, None, None


def _save_swiglu(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*(tensor.contiguous() for tensor in inputs))


def _swiglu_backward(ctx: Any, dact_RF: Tensor) -> tuple[Tensor, Tensor, None, None]:
    return *_weighted_swiglu_backward(dact_RF, *ctx.saved_tensors), None, None


gather_rows.register_autograd(_gather_backward, setup_context=_save_gather)
sum_rows.register_autograd(_sum_backward, setup_context=_save_sum)
weighted_swiglu.register_autograd(_swiglu_backward, setup_context=_save_swiglu)
