"""A sum of two and its RMSNorm in one pass (spec section 2, points 2 and 3).

N tokens, D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from mobilemoe.model.kernels import launcher


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(x, y, weight, total, normed, inverses, eps, D: tl.constexpr, COLS: tl.constexpr):  # type: ignore[no-untyped-def]
    row, col = tl.program_id(0).to(tl.int64), tl.arange(0, COLS)
    inside, at = col < D, row * D + col
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    value = (value + tl.load(y + at, mask=inside, other=0.0).to(tl.float32)).to(total.dtype.element_ty)
    tl.store(total + at, value, mask=inside)
    value = value.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value * value, axis=0) / D + eps)
    tl.store(inverses + row, inverse)
    gain = tl.load(weight + col, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + at, (value * inverse * gain).to(normed.dtype.element_ty), mask=inside)


@torch.library.triton_op("mobilemoe::add_and_norm", mutates_args=())
def add_and_norm(x_ND: Tensor, y_ND: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x + y in the dtype of x, its norm in that of y, and 1 / sqrt(mean(square) + eps) for each token.

    The sum is kept for the backward pass. Computed there again from x and y, it would make the compiler read all that
    the norm's gradient needs once more for that of the weight.
    """
    tokens, width = x_ND.shape
    total_ND, normed_ND = torch.empty_like(x_ND), torch.empty_like(y_ND)
    inverse_N = x_ND.new_empty(tokens, dtype=torch.float32)
    launcher(_kernel)[(tokens,)](
        x_ND.contiguous(),
        y_ND.contiguous(),
        weight_D,
        total_ND,
        normed_ND,
        inverse_N,
        eps,
        D=width,
        COLS=triton.next_power_of_2(width),
    )
    return total_ND, normed_ND, inverse_N


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[0], output[2], inputs[2])


def _backward(ctx: Any, dtotal_ND: Tensor, dnormed_ND: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    total_ND, inverse_N, weight_D = ctx.saved_tensors
    inverse_N1, dnormed = inverse_N.unsqueeze(1), dnormed_ND.float()
    unit_ND, dunit_ND = total_ND.float() * inverse_N1, dnormed * weight_D.float()
    along_N1 = (unit_ND * dunit_ND).mean(dim=1, keepdim=True)
    dx_ND = dtotal_ND.float() + (dunit_ND - unit_ND * along_N1) * inverse_N1
    dweight_D = (dnormed * unit_ND).sum(dim=0).to(weight_D.dtype)
    return dx_ND.to(dtotal_ND.dtype), dx_ND.to(dnormed_ND.dtype), dweight_D, None


add_and_norm.register_autograd(_backward, setup_context=_save)
