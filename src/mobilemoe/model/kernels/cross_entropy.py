"""Cross-entropy over a large vocabulary; its gradient overwrites the logits in one pass over them.

The gradient softmax - one hot needs the sum of a row's exponentials, which is known only at the row's end. So the pass
leaves the gradient times that sum, and the products that follow are divided by it row by row.

C tokens, V vocabulary.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

# Exponentials are relative to the largest logit of the row's first block, until one is larger by this much: far from
# the 88 at which they would overflow.
_ROOM = tl.constexpr(40.0)


@triton.jit  # type: ignore[untyped-decorator]
def _cross_entropy_kernel(logits, targets, losses, inverses, V: tl.constexpr, COLS: tl.constexpr):  # type: ignore[no-untyped-def]
    token = tl.program_id(0).to(tl.int64)
    at = logits + token * V
    target = tl.load(targets + token)
    taught = target >= 0
    said = tl.load(at + target, mask=taught, other=0.0).to(tl.float32)
    tl.debug_barrier()  # the target's logit has to be read before it is overwritten
    shift = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    for first in range(0, V, COLS):
        col = first + tl.arange(0, COLS)
        value = tl.load(at + col, mask=col < V, other=float("-inf")).to(tl.float32)
        largest = tl.max(value, axis=0)
        if largest > shift + _ROOM:
            factor = tl.exp(shift - largest)
            total *= factor
            shift = largest
            tl.debug_barrier()  # threads may rescale what others have stored
            for before in range(0, first, COLS):  # all that is stored so far is relative to the old shift
                there = at + before + tl.arange(0, COLS)
                tl.store(there, (tl.load(there).to(tl.float32) * factor).to(logits.dtype.element_ty))
        value = tl.exp(value - shift)
        total += tl.sum(value, axis=0)
        tl.store(at + col, value.to(logits.dtype.element_ty), mask=col < V)
    tl.store(losses + token, tl.where(taught, shift + tl.log(total) - said, 0.0))
    tl.store(inverses + token, tl.where(taught, 1 / total, 0.0))
    tl.debug_barrier()  # the target's exponential has to be there before its gradient replaces it
    tl.store(at + target, (tl.exp(said - shift) - total).to(logits.dtype.element_ty), mask=taught)


def cross_entropy_in_place(logits_CV: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor]:
    """losses_C and inverses_C (fp32, 0 where the target is negative).

    The logits become numbers whose row c, times inverses[c], is the gradient softmax - one hot.
    """
    tokens, vocabulary = logits_CV.shape
    losses_C, inverses_C = (logits_CV.new_empty(tokens, dtype=torch.float32) for _ in range(2))
    block = min(4096, triton.next_power_of_2(vocabulary))
    _cross_entropy_kernel[(tokens,)](logits_CV, targets_C, losses_C, inverses_C, V=vocabulary, COLS=block, num_warps=8)
    return losses_C, inverses_C
