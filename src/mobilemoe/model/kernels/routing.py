"""Which experts, and where each (token, expert) pair goes: top-k and a counting sort, both deterministic.

N tokens, E experts, A active experts per token, P = N A pairs in token order. A slot is a place in the order sorted by
expert: those of expert 0 first, in token order within an expert.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from mobilemoe.model.kernels import launcher


class Slots(NamedTuple):
    """pair_P: the pair in each slot; slot_P: the slot of each pair; ends_E: where each expert's slots end; int32."""

    pair_P: Tensor
    slot_P: Tensor
    ends_E: Tensor


@triton.jit  # type: ignore[untyped-decorator]
def _choose_kernel(ranked, experts, tokens, E: tl.constexpr, A: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    inside = (row[:, None] < tokens) & (col[None, :] < E)
    score = tl.load(ranked + row[:, None] * E + col[None, :], mask=inside, other=0.0)
    score = tl.where(score == score, score, float("-inf")) + 0.0  # nan ranks lowest; -0 equals 0
    # Whole numbers in the order of the floats, so that a number below -inf can mark what is taken.
    bits = score.to(tl.int32, bitcast=True)
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    key = tl.where(col[None, :] < E, key, -2147483648)
    for a in tl.static_range(A):
        best = tl.argmax(key, axis=1)
        tl.store(experts + row * A + a, best.to(tl.int64), mask=row < tokens)
        key = tl.where(col[None, :] == best[:, None], -2147483648, key)


@triton.jit  # type: ignore[untyped-decorator]
def _count_kernel(experts, counts, pairs, blocks, BLOCK: tl.constexpr, COLS: tl.constexpr):  # type: ignore[no-untyped-def]
    block = tl.program_id(0)
    pair = block * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(experts + pair, mask=pair < pairs, other=-1).to(tl.int32)
    col = tl.arange(0, COLS)
    count = tl.sum((expert[:, None] == col[None, :]).to(tl.int32), axis=0)
    tl.store(counts + col * blocks + block, count)


@triton.jit  # type: ignore[untyped-decorator]
def _place_kernel(experts, starts, pair_of, slot_of, pairs, blocks, BLOCK: tl.constexpr, COLS: tl.constexpr):  # type: ignore[no-untyped-def]
    block = tl.program_id(0)
    pair = block * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(experts + pair, mask=pair < pairs, other=-1).to(tl.int32)
    col = tl.arange(0, COLS)
    chosen = (expert[:, None] == col[None, :]).to(tl.int32)
    start = tl.load(starts + col * blocks + block)
    before = tl.cumsum(chosen, axis=0) - chosen  # pairs of the same expert ahead in this block
    slot = tl.sum(chosen * (before + start[None, :]), axis=1)
    tl.store(slot_of + pair, slot, mask=pair < pairs)
    tl.store(pair_of + slot, pair, mask=pair < pairs)


@torch.library.triton_op("mobilemoe::choose", mutates_args=())
def choose(ranked_NE: Tensor, active: int) -> Tensor:
    """Indices [N, A] (int64) of the largest scores (fp32), best first, ties to the lowest index, nan lowest."""
    tokens, experts = ranked_NE.shape
    chosen_NA = ranked_NE.new_empty(tokens, active, dtype=torch.int64)
    rows = 32
    grid = (triton.cdiv(tokens, rows),)
    launcher(_choose_kernel)[grid](
        ranked_NE.contiguous(), chosen_NA, tokens, E=experts, A=active, ROWS=rows, COLS=triton.next_power_of_2(experts)
    )
    return chosen_NA


@torch.library.triton_op("mobilemoe::sort_pairs", mutates_args=())
def _sort_pairs(experts_P: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    pairs, columns = len(experts_P), triton.next_power_of_2(experts + 1)  # one for the experts of other processes
    block = min(256, max(16, 2**14 // columns))  # a program holds block x columns flags in registers
    blocks = triton.cdiv(pairs, block)
    counts = experts_P.new_empty(columns * blocks, dtype=torch.int32)
    launcher(_count_kernel)[(blocks,)](experts_P, counts, pairs, blocks, BLOCK=block, COLS=columns)
    ends = counts.cumsum(0, dtype=torch.int32)
    starts = ends - counts
    pair_P, slot_P = (experts_P.new_empty(pairs, dtype=torch.int32) for _ in range(2))
    launcher(_place_kernel)[(blocks,)](experts_P, starts, pair_P, slot_P, pairs, blocks, BLOCK=block, COLS=columns)
    return pair_P, slot_P, ends.view(columns, blocks)[:experts, -1].contiguous()


def sort_pairs(experts_NA: Tensor, experts: int) -> Slots:
    """A stable counting sort of the N A pairs by expert; waits for nothing on the host.

    Pairs whose expert is number `experts` come last and belong to no expert.
    """
    return Slots(*_sort_pairs(experts_NA.flatten(), experts))
