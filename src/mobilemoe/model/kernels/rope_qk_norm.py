"""RoPE and QK-norm, the weightless norm of each head, in one pass (spec section 2, point 4).

N tokens, H query heads, K key/value heads, h head_dim (a power of two), C = (H + 2 K) h: q, k and v side by side. A
rotation keeps lengths, so the norm's factor comes from x itself: y = r R x with r = 1 / sqrt(mean(x^2) + eps), and
dx = r R^T dy - x r^3 (R^T dy . x) / h. v is copied, so that the gradients of all three are written side by side.
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
def _heads(q, k, v, vectors, H: tl.constexpr, K: tl.constexpr, h: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """ROWS heads: their tokens, where each would lie in q, k and v, and which of the three it belongs to."""
    vector = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    token, head, at = vector // (H + 2 * K), (vector % (H + 2 * K))[:, None], tl.arange(0, h)[None, :]
    inside = (vector < vectors)[:, None]
    in_q, in_k, in_v = inside & (head < H), inside & (head >= H) & (head < H + K), inside & (head >= H + K)
    q_at = q + (token[:, None] * H + head) * h + at
    k_at = k + (token[:, None] * K + head - H) * h + at
    v_at = v + (token[:, None] * K + head - H - K) * h + at
    return vector, token, q_at, k_at, v_at, in_q, in_k, in_v


@triton.jit  # type: ignore[untyped-decorator]
def _halves(x, ROWS: tl.constexpr, h: tl.constexpr):  # type: ignore[no-untyped-def]
    """Even and odd entries of ROWS vectors of h numbers."""
    return tl.split(tl.reshape(x.to(tl.float32), (ROWS, h // 2, 2)))


@triton.jit  # type: ignore[untyped-decorator]
def _forward_kernel(  # type: ignore[no-untyped-def]
    x, cos, sin, q, k, v, vectors, eps, H: tl.constexpr, K: tl.constexpr, h: tl.constexpr, ROWS: tl.constexpr
):
    vector, token, q_at, k_at, v_at, in_q, in_k, in_v = _heads(q, k, v, vectors, H, K, h, ROWS)
    value = tl.load(x + vector[:, None] * h + tl.arange(0, h)[None, :], mask=in_q | in_k | in_v, other=0.0)
    tl.store(v_at, value, mask=in_v)
    even, odd = _halves(value, ROWS, h)
    angle = token[:, None] * h + 2 * tl.arange(0, h // 2)[None, :] + 1
    c = tl.load(cos + angle, mask=(vector < vectors)[:, None], other=0.0)
    s = tl.load(sin + angle, mask=(vector < vectors)[:, None], other=0.0)
    r = tl.rsqrt(tl.sum(even * even + odd * odd, axis=1) / h + eps)[:, None]
    y = tl.reshape(tl.join((even * c - odd * s) * r, (even * s + odd * c) * r), (ROWS, h)).to(x.dtype.element_ty)
    tl.store(q_at, y, mask=in_q)
    tl.store(k_at, y, mask=in_k)


@triton.jit  # type: ignore[untyped-decorator]
def _backward_kernel(  # type: ignore[no-untyped-def]
    dq, dk, dv, x, cos, sin, dx, vectors, eps, H: tl.constexpr, K: tl.constexpr, h: tl.constexpr, ROWS: tl.constexpr
):
    vector, token, q_at, k_at, v_at, in_q, in_k, in_v = _heads(dq, dk, dv, vectors, H, K, h, ROWS)
    at = vector[:, None] * h + tl.arange(0, h)[None, :]
    even, odd = _halves(tl.load(x + at, mask=in_q | in_k, other=0.0), ROWS, h)
    dy = tl.load(q_at, mask=in_q, other=0.0) + tl.load(k_at, mask=in_k, other=0.0)
    dy_even, dy_odd = _halves(dy, ROWS, h)
    angle = token[:, None] * h + 2 * tl.arange(0, h // 2)[None, :] + 1
    c = tl.load(cos + angle, mask=(vector < vectors)[:, None], other=0.0)
    s = tl.load(sin + angle, mask=(vector < vectors)[:, None], other=0.0)
    d_even, d_odd = dy_even * c + dy_odd * s, dy_odd * c - dy_even * s  # rotated back
    r = tl.rsqrt(tl.sum(even * even + odd * odd, axis=1) / h + eps)[:, None]
    along = r * r * (tl.sum(d_even * even + d_odd * odd, axis=1) / h)[:, None]
    gradient = tl.reshape(tl.join(r * (d_even - even * along), r * (d_odd - odd * along)), (ROWS, h))
    tl.store(dx + at, gradient.to(dx.dtype.element_ty), mask=in_q | in_k)
    tl.store(dx + at, tl.load(v_at, mask=in_v, other=0.0), mask=in_v)


@torch.library.triton_op("mobilemoe::rotate_and_norm", mutates_args=())
def rotate_and_norm(
    x_NC: Tensor, cos_Nh: Tensor, sin_Nh: Tensor, eps: float, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """q_NHh and k_NKh, rotated by each token's angle and normed, and v_NKh as it is.

    cos_Nh, sin_Nh (fp32, contiguous): `rope.RopeTable` with its rows flattened.
    """
    tokens, width = x_NC.shape[0], cos_Nh.shape[1]
    q_NHh, k_NKh, v_NKh = (x_NC.new_empty(tokens, count, width) for count in (heads, kv_heads, kv_heads))
    vectors = tokens * (heads + 2 * kv_heads)
    launcher(_forward_kernel)[(triton.cdiv(vectors, _ROWS),)](
        x_NC.contiguous(), cos_Nh, sin_Nh, q_NHh, k_NKh, v_NKh, vectors, eps, H=heads, K=kv_heads, h=width, ROWS=_ROWS
    )
    return q_NHh, k_NKh, v_NKh


@torch.library.triton_op("mobilemoe::rotate_and_norm_backward", mutates_args=())
def _rotate_and_norm_backward(
    dq_NHh: Tensor, dk_NKh: Tensor, dv_NKh: Tensor, x_NC: Tensor, cos_Nh: Tensor, sin_Nh: Tensor, eps: float
) -> Tensor:
    dx_NC = x_NC.new_empty(x_NC.shape)
    (tokens, heads, width), kv_heads = dq_NHh.shape, dk_NKh.shape[1]
    vectors = tokens * (heads + 2 * kv_heads)
    launcher(_backward_kernel)[(triton.cdiv(vectors, _ROWS),)](
        dq_NHh.contiguous(),
        dk_NKh.contiguous(),
        dv_NKh.contiguous(),
        x_NC.contiguous(),
        cos_Nh,
        sin_Nh,
        dx_NC,
        vectors,
        eps,
        H=heads,
        K=kv_heads,
        h=width,
        ROWS=_ROWS,
    )
    return dx_NC


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float, int, int], output: tuple[Tensor, ...]) -> None:
    x_NC, cos_Nh, sin_Nh, ctx.eps, _, _ = inputs
    ctx.save_for_backward(x_NC, cos_Nh, sin_Nh)


def _backward(ctx: Any, *d_qkv: Tensor) -> tuple[Tensor, None, None, None, None, None]:
    return _rotate_and_norm_backward(*d_qkv, *ctx.saved_tensors, ctx.eps), None, None, None, None, None


rotate_and_norm.register_autograd(_backward, setup_context=_save)
