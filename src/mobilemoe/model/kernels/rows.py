"""Moves rows to their experts' slots and back, and computes SwiGLU with the routing weight in between.

N tokens, D hidden, F expert width, A active experts per token, P = N A slots sorted by expert (`routing.Slots`).
Neither direction adds with atomics: a token's sum gathers its A slots, in the order of its choices.

A process that holds only some of the experts makes room for the first R <= P slots. Those that count end at the last of
`ends_E`, which only the device knows; rows after it hold anything, and nothing reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from mobilemoe.model.kernels import launcher

_ROWS, _COLS = 16, 128  # a tile; the widths of S, M and L are multiples of 128


@triton.jit  # type: ignore[untyped-decorator]
def _gather_kernel(  # type: ignore[no-untyped-def]
    x, out, slot_of, slots, tokens, width, A: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = (token[:, None] < tokens) & (col[None, :] < width)
    # A token is read once and written to its A slots: read by slots, it would come from memory up to A times.
    value = tl.load(x + token[:, None].to(tl.int64) * width + col[None, :], mask=inside)
    for a in tl.static_range(A):
        slot = tl.load(slot_of + token * A + a, mask=token < tokens, other=0).to(tl.int64)
        tl.store(out + slot[:, None] * width + col[None, :], value, mask=inside & (slot < slots)[:, None])


@triton.jit  # type: ignore[untyped-decorator]
def _sum_kernel(  # type: ignore[no-untyped-def]
    y,
    out,
    slot_of,
    end,
    first,
    second,
    tokens,
    width,
    A: tl.constexpr,
    MORE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    slots = tl.load(end)
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = (token[:, None] < tokens) & (col[None, :] < width)
    total = tl.zeros((ROWS, COLS), tl.float32)
    for a in tl.static_range(A):
        slot = tl.load(slot_of + token * A + a, mask=token < tokens, other=0).to(tl.int64)
        counts = inside & (slot < slots)[:, None]
        total += tl.load(y + slot[:, None] * width + col[None, :], mask=counts, other=0.0).to(tl.float32)
    at = token[:, None].to(tl.int64) * width + col[None, :]
    if MORE > 0:
        total += tl.load(first + at, mask=inside, other=0.0).to(tl.float32)
    if MORE > 1:
        total += tl.load(second + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


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
    dact,
    h,
    weights,
    pair_of,
    end,
    dh,
    dweights,
    rows,
    dh_stride,
    F: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
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
        tl.store(dh + row * dh_stride + col, dgate.to(dh.dtype.element_ty), mask=inside)
        tl.store(dh + row * dh_stride + F + col, dup.to(dh.dtype.element_ty), mask=inside)
    tl.store(dweights + pair, dweight, mask=slot < slots)


def _tiles(rows: int, width: int) -> tuple[int, int]:
    return triton.cdiv(rows, _ROWS), triton.cdiv(width, _COLS)


@torch.library.triton_op("mobilemoe::gather_rows", mutates_args=())
def gather_rows(x_ND: Tensor, pair_R: Tensor, slot_P: Tensor, ends_E: Tensor) -> Tensor:
    """x_RD: each slot's token."""
    (tokens, width), slots = x_ND.shape, len(pair_R)
    x_RD = x_ND.new_empty(slots, width)
    launcher(_gather_kernel)[_tiles(tokens, width)](
        x_ND.contiguous(), x_RD, slot_P, slots, tokens, width, A=len(slot_P) // tokens, ROWS=_ROWS, COLS=_COLS
    )
    return x_RD


@torch.library.triton_op("mobilemoe::sum_rows", mutates_args=())
def sum_rows(
    y_RD: Tensor, pair_R: Tensor, slot_P: Tensor, ends_E: Tensor, active: int, more: Sequence[Tensor]
) -> Tensor:
    """y_ND: the sum of each token's A slots, those that count, and of `more` [N, D], at most two; in fp32."""
    width, tokens = y_RD.shape[1], len(slot_P) // active
    dtype = y_RD.dtype
    for term_ND in more:
        dtype = torch.promote_types(dtype, term_ND.dtype)
    y_ND = y_RD.new_empty(tokens, width, dtype=dtype)
    first, second = (*(term_ND.contiguous() for term_ND in more), y_RD, y_RD)[:2]
    launcher(_sum_kernel)[_tiles(tokens, width)](
        y_RD.contiguous(),
        y_ND,
        slot_P,
        ends_E[-1:],
        first,
        second,
        tokens,
        width,
        A=active,
        MORE=len(more),
        ROWS=_ROWS,
        COLS=_COLS,
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
    dh_R2F = torch.empty_like(h_R2F)
    # A pair without a slot that counts has no part in the result.
    whole = len(dact_RF) == weights_NA.numel()
    dweights_NA = torch.empty_like(weights_NA) if whole else torch.zeros_like(weights_NA)
    _launch_swiglu_backward(dact_RF, h_R2F, weights_NA, pair_R, ends_E, dh_R2F, dweights_NA)
    return dh_R2F, dweights_NA


def _launch_swiglu_backward(
    dact_RF: Tensor,
    h_R2F: Tensor,
    weights_NA: Tensor,
    pair_R: Tensor,
    ends_E: Tensor,
    dh_R2F: Tensor,
    dweights_NA: Tensor,
) -> None:
    """Writes the last two; the rows of dh may lie apart."""
    slots, width = dact_RF.shape
    launcher(_swiglu_backward_kernel)[(triton.cdiv(slots, _ROWS),)](
        dact_RF.contiguous(),
        h_R2F,
        weights_NA,
        pair_R,
        ends_E[-1:],
        dh_R2F,
        dweights_NA,
        slots,
        dh_R2F.stride(0),
        F=width,
        ROWS=_ROWS,
        COLS=_COLS,
    )


def _save_gather(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: Tensor) -> None:
    x_ND, pair_R, slot_P, ends_E = inputs
    ctx.save_for_backward(pair_R, slot_P, ends_E)
    ctx.active = len(slot_P) // len(x_ND)


def _gather_backward(ctx: Any, dx_RD: Tensor) -> tuple[Tensor, None, None, None]:
    return sum_rows(dx_RD, *ctx.saved_tensors, ctx.active, []), None, None, None


def _save_sum(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, int, Sequence[Tensor]], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:4])
    ctx.dtype, ctx.dtypes = inputs[0].dtype, [term_ND.dtype for term_ND in inputs[5]]


def _sum_backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor, None, None, None, None, list[Tensor]]:
    dy_RD = gather_rows(dy_ND.to(ctx.dtype), *ctx.saved_tensors)
    return dy_RD, None, None, None, None, [dy_ND.to(dtype) for dtype in ctx.dtypes]


def _save_swiglu(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*(tensor.contiguous() for tensor in inputs))


def _swiglu_backward(ctx: Any, dact_RF: Tensor) -> tuple[Tensor, Tensor, None, None]:
    return *_weighted_swiglu_backward(dact_RF, *ctx.saved_tensors), None, None


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(first half) * second half, over the last dimension."""
    h_N2F = gate_up.flatten(0, -2)
    act_NF: Tensor = weighted_swiglu(h_N2F, *_alone(h_N2F))
    return act_NF.unflatten(0, gate_up.shape[:-1])


def swiglu_backward(dact_NF: Tensor, h_N2F: Tensor, dh_N2F: Tensor) -> None:
    """Writes the gradient of `swiglu` into `dh`, whose rows may lie apart."""
    one_N1, pair_N, end = _alone(h_N2F)
    _launch_swiglu_backward(dact_NF, h_N2F, one_N1, pair_N, end, dh_N2F, torch.empty_like(one_N1))


def _alone(h_N2F: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, pairs and ends where each row is a pair of its own, with weight 1."""
    rows, device = h_N2F.shape[0], h_N2F.device
    pair_N = torch.arange(rows, dtype=torch.int32, device=device)
    return torch.ones(rows, 1, device=device), pair_N, pair_N.new_full((1,), rows)


gather_rows.register_autograd(_gather_backward, setup_context=_save_gather)
sum_rows.register_autograd(_sum_backward, setup_context=_save_sum)
weighted_swiglu.register_autograd(_swiglu_backward, setup_context=_save_swiglu)
