"""Fake quantisation: values as INT4 weights and INT8 activations have them, with gradients as if nothing were rounded.

Weights follow `mobilemoe.checkpoint.int4` to the bit, also where torch.compile makes the kernels: it divides by an
approximation and drops a cast to fp16 and back, so neither is left to it. Legend: E experts, I inputs, O outputs, C
channels, N grouped axis; `groups` are [..., N/32, 32] along the axis `dim`, -1 or -2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mobilemoe.config import GROUP_SIZE

_QMIN, _QMAX = -8, 7
SMALLEST_SCALE = 2.0**-24  # the smallest fp16 number above zero
# LSQ's g: it balances the steps of a scale with those of its weights (Esser et al. 2020, section 2.2).
_SCALE_GRADIENT = 1 / math.sqrt(GROUP_SIZE * _QMAX)


def fake_int4(w: Tensor, dim: int = -1, scale: Tensor | None = None) -> Tensor:
    """Weights as an INT4 file would give them back, computed in fp32 and returned in the dtype of `w`.

    `dim` is the grouped axis: -1 for matrices [O, I] and experts [E, I, O] grouped along the output, -2 for experts
    grouped along the input; it must be a multiple of 32. Without `scale`, that of a group is amax / 7.5 (spec 5) and
    the gradient passes as it is, clamped weights included: only a group's largest can be clamped, by half a step, and
    it must stay free to move, for it makes the scale. With `scale`, as INT4 files keep it (fp32, grouped axis last,
    [..., N/32]), both gradients are those of LSQ (arXiv 1902.08153, equations 3 and 5).
    """
    groups = _groups(w, dim)
    with torch.no_grad():
        used = _to_fp16(_amax_scale(groups, dim) if scale is None else _beside(scale, dim).clamp(min=SMALLEST_SCALE))
        ratio = _ratio(groups, used)
        rounded = ratio.round().clamp(_QMIN, _QMAX) * used
        if scale is not None:
            inside = (ratio > _QMIN) & (ratio < _QMAX)
            slope = torch.where(inside, ratio.round() - ratio, ratio.clamp(_QMIN, _QMAX)) * _SCALE_GRADIENT
    if scale is None:
        rounded = rounded + _zero(groups)
    else:
        rounded = rounded + inside * _zero(groups) + slope * _zero(_beside(scale, dim))
    return rounded.view_as(w).to(w.dtype)


def first_scale(w: Tensor, dim: int = -1) -> Tensor:
    """The scales that `fake_int4` would use without any, fp32, in the layout in which it takes them."""
    scale = _amax_scale(_groups(w, dim), dim).squeeze(dim)
    return scale if dim == -1 else scale.transpose(-1, -2).contiguous()


def fake_int8(x: Tensor) -> Tensor:
    """Activations [..., C] as dynamic INT8: symmetric, amax / 127, the gradient passes as it is.

    One scale for each token and 32 channels, as in the native engine (ExecuTorch: for each token). With experts
    grouped along the output the engine folds the weights' scales in before it rounds, which is not imitated here.
    """
    with torch.no_grad():
        groups = _groups(x, -1)
        amax = groups.abs().amax(-1, keepdim=True)
        inverse = torch.where(amax > 0, 127 / amax, 0)
        rounded = ((groups * inverse).round() * (amax / 127)).view(x.shape).to(x.dtype)
    return rounded + _zero(x)


def fake_bf16(x: Tensor) -> Tensor:
    """The nearest bfloat16 values (but for those below 1e-36), in the dtype of `x`; the gradient passes as it is."""
    with torch.no_grad():
        rounded = _round_bits(x.float(), bits=8, lowest=-126).to(x.dtype)
    return rounded + _zero(x)


def _zero(x: Tensor) -> Tensor:
    """Exactly 0 with the gradient of `x`. Not an autograd.Function: where the forward pass of one takes views, the
    compiler of torch 2.11 gives no gradient at all."""
    return x - x.detach()


def _groups(w: Tensor, dim: int) -> Tensor:
    """[..., N/32, 32] along `dim` in fp32: afterwards `dim` is the axis within a group."""
    groups: Tensor = w.contiguous().float().unflatten(dim, (-1, GROUP_SIZE))
    return groups


def _amax_scale(groups: Tensor, dim: int) -> Tensor:
    """amax / 7.5, not rounded to fp16. In fp64, where a division and a product by 1 / 7.5 round to the same fp32."""
    return (groups.abs().amax(dim, keepdim=True).double() / 7.5).float()


def _beside(scale: Tensor, dim: int) -> Tensor:
    """Scales as files lay them out, in fp32, in the layout of `groups`."""
    return (scale if dim == -1 else scale.transpose(-1, -2)).unsqueeze(dim).float()


def _ratio(groups: Tensor, scale: Tensor) -> Tensor:
    """groups / scale to the last bit of fp32; zeros where the scale is zero."""
    divisor = torch.where(scale > 0, scale, torch.inf)
    if torch.compiler.is_compiling():  # Triton's fp32 division is not exact, its fp64 division is
        return (groups.double() / divisor.double()).float()
    return groups / divisor


def _to_fp16(x: Tensor) -> Tensor:
    """fp32 values, zero or positive, rounded to what fp16 can hold; beyond its range the export refuses."""
    return _round_bits(x, bits=11, lowest=-24)


def _round_bits(x: Tensor, bits: int, lowest: int) -> Tensor:
    """fp32 values to the nearest of `bits` significant bits, ties to even, no finer than 2^lowest."""
    exponent = (x.view(torch.int32) >> 23) & 0xFF  # biased by 127, as in the fp32 numbers made of it below
    step = (exponent - (bits - 1)).clamp(min=lowest + 127)
    return (x * ((254 - step) << 23).view(torch.float32)).round() * (step << 23).view(torch.float32)
