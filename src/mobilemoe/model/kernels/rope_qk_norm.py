"""RoPE and QK-norm, the weightless norm of each head, in one pass (spec section 2, point 4).

N tokens, H heads, h head_dim (a power of two). A rotation keeps lengths, so the norm's factor comes from x itself:
y = r R x with r = 1 / sqrt(mean(x^2) + eps), and dx = r R^T dy - x r^3 (R^T dy . x) / h.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from mobilemoe.model.kernels import launcher

_ROWS = 32  # heads of tokens in a tile


@triton.jit  # type: ignore[untyped-decorator]
def _halves(at, inside, ROWS: tl.constexpr, h: tl.constexpr):  # type: ignore[no-untyped-def]
    """Even and odd entries of ROWS vectors of h numbers."""
    value = tl.load(at[:, None] + tl.arange(0, h)[None, :], mask=inside[:, None], other=0.0).to(tl.float32)
    return tl.split(tl.reshape(value, (ROWS, h // 2, 2)))


@triton.jit  # type: ignore[untyped-decorator]
def _store_halves(at, even, odd, inside, ROWS: tl.constexpr, h: tl.constexpr):  # type: ignore[no-untyped-def]
    value = tl.reshape(tl.join(even, odd), (ROWS, h)).to(at.dtype.element_ty)
    tl.store(at[:, None] + tl.arange(0, h)[None, :], value, mask=inside[:, None])


@triton.jit  # type: ignore[untyped-decorator]
def _forward_kernel(  # type: ignore[no-untyped-def]
    x, cos, sin, out, vectors, x_stride, eps, H: tl.constexpr, h: tl.constexpr, ROWS: tl.constexpr
):
    vector = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = vector < vectors
    token, head = (vector // H).to(tl.int64), vector % H
    even, odd = _halves(x + token * x_stride + head * h, inside, ROWS, h)
    angle = token[:, None] * h + 2 * tl.arange(0, h // 2)[None, :] + 1
    c = tl.load(cos + angle, mask=inside[:, None], other=0.0)
    s = tl.load(sin + angle, mask=inside[:, None], other=0.0)
    r = tl.rsqrt(tl.sum(even * even + odd * odd, axis=1) / h + eps)[:, None]
    out_at = out + vector.to(tl.int64) * h
    _store_halves(out_at, (even * c - odd * s) * r, (even * s + odd * c) * r, inside, ROWS, h)


@triton.jit  # type: ignore[untyped-decorator]
def _backward_kernel(  # type: ignore[no-untyped-def]
    dy, x, cos, sin, dx, vectors, x_stride, eps, H: tl.constexpr, h: tl.constexpr, ROWS: tl.constexpr
):
    vector = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = vector < vectors
    token, head = (vector // H).to(tl.int64), vector % H
    even, odd = _halves(x + token * x_stride + head * h, inside, ROWS, h)
    dy_even, dy_odd = _halves(dy + vector.to(tl.int64) * h, inside, ROWS, h)
    angle = token[:, None] * h + 2 * tl.arange(0, h // 2)[None, :] + 1
    c = tl.load(cos + angle, mask=inside[:, None], other=0.0)
    s = tl.load(sin + angle, mask=inside[:, None], other=0.0)
    d_even, d_odd = dy_even * c + dy_odd * s, dy_odd * c - dy_even * s  # rotated back
    r = tl.rsqrt(tl.sum(even * even + odd * odd, axis=1) / h + eps)[:, None]
    along = r * r * (tl.sum(d_even * even + d_odd * odd, axis=1) / h)[:, None]
    dx_at = dx + vector.to(tl.int64) * h
    _store_halves(dx_at, r * (d_even - even * along), r * (d_odd - odd * along), inside, ROWS, h)


@torch.library.triton_op("mobilemoe::rotate_and_norm", mutates_args=())
def rotate_and_norm(x_NHh: Tensor, cos_Nh: Tensor, sin_Nh: Tensor, eps: float) -> Tensor:
    """The heads of each token rotated by its angle and normed; each token's heads must lie side by side in memory.

    cos_Nh, sin_Nh (fp32, contiguous): `rope.RopeTable` with its rows flattened.
    """
    tokens, heads, width = x_NHh.shape
    out_NHh = x_NHh.new_empty(tokens, heads, width)
    launcher(_forward_kernel)[(triton.cdiv(tokens * heads, _ROWS),)](
        x_NHh, cos_Nh, sin_Nh, out_NHh, tokens * heads, x_NHh.stride(0), eps, H=heads, h=width, ROWS=_ROWS
    )
    return out_NHh


@torch.library.triton_op("mobilemoe::rotate_and_norm_backward", mutates_args=())
def _rotate_and_norm_backward(dy_NHh: Tensor, x_NHh: Tensor, cos_Nh: Tensor, sin_Nh: Tensor, eps: float) -> Tensor:
    tokens, heads, width = x_NHh.shape
    dx_NHh = x_NHh.new_empty(tokens, heads, width)
    launcher(_backward_kernel)[(triton.cdiv(tokens * heads, _ROWS),)](
        dy_NHh.contiguous(),
        x_NHh,
        cos_Nh,
        sin_Nh,
        dx_NHh,
        tokens * heads,
        x_NHh.stride(0),
        eps,
        H=heads,
        h=width,
        ROWS=_ROWS,
    )
    return dx_NHh


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: Tensor) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dy_NHh: Tensor) -> tuple[Tensor, None, None, None]:
    return _rotate_and_norm_backward(dy_NHh, *ctx.saved_tensors, ctx.eps), None, None, None


rotate_and_norm.register_autograd(_backward, setup_context=_save)
