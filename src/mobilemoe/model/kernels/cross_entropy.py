"""Cross-entropy over a large vocabulary; its gradient overwrites the logits.

C tokens, V vocabulary.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor


@triton.jit  # type: ignore[untyped-decorator]
def _cross_entropy_kernel(logits, targets, losses, V: tl.constexpr, COLS: tl.constexpr):  # type: ignore[no-untyped-def]
    token = tl.program_id(0).to(tl.int64)
    at = logits + token * V
    target = tl.load(targets + token)
    taught = target >= 0
    largest = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    for first in range(0, V, COLS):
        col = first + tl.arange(0, COLS)
        value = tl.load(at + col, mask=col < V, other=float("-inf")).to(tl.float32)
        new = tl.maximum(largest, tl.max(value, axis=0))
        total = total * tl.exp(largest - new) + tl.sum(tl.exp(value - new), axis=0)
        largest = new
    log_sum = largest + tl.log(total)
    said = tl.load(at + target, mask=taught, other=0.0).to(tl.float32)
    tl.store(losses + token, tl.where(taught, log_sum - said, 0.0))
    tl.debug_barrier()  # the target's logit has to be read before it is overwritten
    for first in range(0, V, COLS):
        col = first + tl.arange(0, COLS)
        value = tl.load(at + col, mask=col < V, other=float("-inf")).to(tl.float32)
        grad = tl.exp(value - log_sum) - (col == target).to(tl.float32)
        grad = tl.where(taught, grad, 0.0)
        tl.store(at + col, grad.to(logits.dtype.element_ty), mask=col < V)


def cross_entropy_in_place(logits_CV: Tensor, targets_C: Tensor) -> Tensor:
    """losses_C (fp32, 0 where the target is negative); the logits become their gradient, softmax - one hot."""
    tokens, vocabulary = logits_CV.shape
    losses_C = logits_CV.new_empty(tokens, dtype=torch.float32)
    block = min(8192, triton.next_power_of_2(vocabulary))
    _cross_entropy_kernel[(tokens,)](logits_CV, targets_C, losses_C, V=vocabulary, COLS=block, num_warps=16)
    return losses_C
