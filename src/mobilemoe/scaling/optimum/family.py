"""Sizes of the paper's family as continuous functions of N, for searches and curves between its members."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from mobilemoe import accounting
from mobilemoe.presets import family_member

Array = NDArray[np.float64]

# Widths that are multiples of 256 have four KV heads, as S, M and L have, so that sizes change without jumps.
WIDTHS = (64, 128, *range(256, 8193, 256))


@dataclass(frozen=True)
class Family:
    """Sizes of the members with one (E, g, s): exact at WIDTHS, and between them straight lines in logarithms."""

    log_n: Array  # [W] of N as the law counts it, 1e9
    log_active: Array  # [W] of N with the embedding, 1e9
    log_memory: Array  # [W] of bytes

    def active(self, n: Array) -> Array:
        """N with the embedding, 1e9, for N as the law counts it."""
        result: Array = np.exp(np.interp(np.log(n), self.log_n, self.log_active))
        return result

    def memory(self, n: Array) -> Array:
        """Bytes of the model with N as the law counts it."""
        result: Array = np.exp(np.interp(np.log(n), self.log_n, self.log_memory))
        return result

    def largest(self, memory_bytes: float) -> float:
        """N of the largest member that fits; the narrowest must fit."""
        return float(np.exp(np.interp(np.log(memory_bytes), self.log_memory, self.log_n)))

    @property
    def range(self) -> tuple[float, float]:
        """N of the narrowest and of the widest member."""
        return float(np.exp(self.log_n[0])), float(np.exp(self.log_n[-1]))

    @property
    def least_memory(self) -> float:
        return float(np.exp(self.log_memory[0]))


@cache
def family(knobs: tuple[int, int, int], *, counts_embedding: bool, vocab_size: int, context: int) -> Family:
    """The members of `presets.family_member` with these (E, g, s).

    Memory is the INT4 weights' file and the int8 KV cache of `context` tokens. counts_embedding: whether the law's N
    includes the embedding.
    """
    experts, granularity, shared = knobs
    rows = []
    for width in WIDTHS:
        config = family_member(
            width, expansion=experts, granularity=granularity, shared=bool(shared), vocab_size=vocab_size
        )
        active = accounting.active_parameters(config)
        counted = active if counts_embedding else active - vocab_size * width
        memory = accounting.int4_file_bytes(config) + accounting.kv_bytes(config, context)
        rows.append((counted / 1e9, active / 1e9, memory))
    return Family(*np.log(np.array(rows)).T)
