"""Fake quantisation: rounds to the values of INT4 weights and INT8 activations, with gradients as if unrounded.

Weights equal those of `mobilemoe.checkpoint.int4` to the bit, also under torch.compile, whose kernels divide
approximately and drop a cast to fp16 and back: therefore both are computed in other ways here. Legend: E experts,
I inputs, O outputs, C channels, N grouped axis; `groups` are [..., N/32, 32] along the axis `dim`, -1 or -2.
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
    """The weights after rounding to INT4 and back, computed in fp32 and returned in the dtype of `w`.

    `dim` is the grouped axis: -1 for matrices [O, I] and experts [E, I, O] grouped along the output, -2 for experts
    grouped along the input; it must be a multiple of 32. Without `scale`, that of a group is amax / 7.5 (spec 5) and
    the gradient passes unchanged, also for clamped weights: only the largest weight of a group can be clamped, by half
    a step, and it must be able to change because it determines the scale. With `scale`, in the layout of INT4 files
    (fp32, grouped axis last, [..., N/32]), both gradients are those of LSQ (arXiv 1902.08153, equations 3 and 5).
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
    """The scales that `fake_int4` computes when it is given none: fp32, in the layout of its argument `scale`."""
    scale = _amax_scale(_groups(w, dim), dim).squeeze(dim)
    return scale if dim == -1 else scale.transpose(-1, -2).contiguous()


def fake_int8(x: Tensor) -> Tensor:
    """Activations [..., C] rounded as in dynamic INT8: symmetric, scale amax / 127; the gradient passes unchanged.

    One scale for each token and 32 channels, as in the native engine (ExecuTorch: for each token). With experts
    grouped along the output the engine multiplies the weights' scales in before it rounds, which is not imitated here.
    """
    with torch.no_grad():
        groups = _groups(x, -1)
        amax = groups.abs().amax(-1, keepdim=True)
        inverse = torch.where(amax > 0, 127 / amax, 0)
        rounded = ((groups * inverse).round() * (amax / 127)).view(x.shape).to(x.dtype)
    return rounded + _zero(x)


def fake_bf16(x: Tensor) -> Tensor:
    """The nearest bfloat16 values (exact above 1e-36), in the dtype of `x`; the gradient passes unchanged."""
    with torch.no_grad():
        rounded = _round_bits(x.float(), bits=8, lowest=-126).to(x.dtype)
    return rounded + _zero(x)


def _zero(x: Tensor) -> Tensor:
    """Exactly 0 with the gradient of `x`. This is not an autograd.Function, because the compiler of
    torch 2.11 returns no gradient through one whose forward pass takes views."""
    return x - x.detach()


def _groups(w: Tensor, dim: int) -> Tensor:
    """[..., N/32, 32] along `dim`, in fp32; afterwards `dim` is the axis within a group."""
    groups: Tensor = w.contiguous().float().unflatten(dim, (-1, GROUP_SIZE))
    return groups


def _amax_scale(groups: Tensor, dim: int) -> Tensor:
    """amax / 7.5, not rounded to fp16. Computed in fp64, so that dividing and multiplying by 1 / 7.5 agree in fp32."""
    return (groups.abs().amax(dim, keepdim=True).double() / 7.5).float()


def _beside(scale: Tensor, dim: int) -> Tensor:
    """Scales in a file's layout, rearranged to that of `groups`, in fp32."""
    return (scale if dim == -1 else scale.transpose(-1, -2)).unsqueeze(dim).float()


def _ratio(groups: Tensor, scale: Tensor) -> Tensor:
    """groups / scale, exact to the last bit of fp32; zero where the scale is zero."""
    divisor = torch.where(scale > 0, scale, torch.inf)
    if torch.compiler.is_compiling():  # Triton's fp32 division is not exact, its fp64 division is
        return (groups.double() / divisor.double()).float()
    return groups / divisor


def _to_fp16(x: Tensor) -> Tensor:
    """fp32 values >= 0 rounded to fp16 precision; the export refuses those beyond fp16's range."""
    return _round_bits(x, bits=11, lowest=-24)


def _round_bits(x: Tensor, bits: int, lowest: int) -> Tensor:
    """Rounds fp32 values to `bits` significant bits, ties to even, no finer than 2^lowest."""
    exponent = (x.view(torch.int32) >> 23) & 0xFF  # biased by 127, as in the fp32 numbers made of it below
    step = (exponent - (bits - 1)).clamp(min=lowest + 127)
    return (x * ((254 - step) << 23).view(torch.float32)).round() * (step << 23).view(torch.float32)
