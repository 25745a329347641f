"""Sizes of the paper's family as smooth functions of N, which a bounded search and a curve need."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mobilemoe import accounting
from mobilemoe.accounting import WeightBits
from mobilemoe.errors import MissingExtraError
from mobilemoe.presets import family_member

if TYPE_CHECKING:
    from scipy.interpolate import PchipInterpolator

Array = NDArray[np.float64]

# Multiples of 256 have four KV heads, as S, M and L have: between them the sizes change without jumps.
WIDTHS = (64, 128, *range(256, 8193, 256))


@dataclass(frozen=True)
class Family:
    """Sizes of the family's members of one (E, g, s), smooth in width: monotone cubics in logarithms over WIDTHS."""

    log_n: Array  # [W] of N as the law counts it, 1e9
    log_active: Array  # [W] of N with the embedding, 1e9
    log_memory: Array  # [W] of bytes

    @cached_property
    def _cubics(self) -> tuple[PchipInterpolator, PchipInterpolator]:
        """ln N with the embedding, and ln bytes, of ln N."""
        try:
            from scipy.interpolate import PchipInterpolator
        except ImportError:
            raise MissingExtraError("interpolating the family's sizes", "scaling") from None
        return PchipInterpolator(self.log_n, self.log_active), PchipInterpolator(self.log_n, self.log_memory)

    def active(self, n: Array) -> Array:
        """N with the embedding, 1e9."""
        result: Array = np.exp(self._cubics[0](np.log(n)))
        return result

    def memory(self, n: Array) -> Array:
        """Bytes."""
        result: Array = np.exp(self._cubics[1](np.log(n)))
        return result

    def largest(self, memory_bytes: float) -> float:
        """N of the largest member that fits; the widest member's where all fit. The narrowest must fit."""
        log_memory = np.log(memory_bytes)
        if log_memory >= self.log_memory[-1]:
            return self.range[1]
        return float(np.exp(self._cubics[1].solve(log_memory, extrapolate=False)[0]))

    @property
    def range(self) -> tuple[float, float]:
        """N of the narrowest and of the widest member."""
        return float(np.exp(self.log_n[0])), float(np.exp(self.log_n[-1]))

    @property
    def least_memory(self) -> float:
        return float(np.exp(self.log_memory[0]))


@cache
def family(
    experts: int,
    granularity: int,
    shared: int,
    *,
    counts_embedding: bool,
    vocab_size: int,
    context: int,
    weight_bits: WeightBits,
    kv_bits: int,
) -> Family:
    """The members of `presets.family_member`; M is the weights' file and the KV cache of `context` tokens.

    counts_embedding: whether the law's N has the embedding in it.
    """
    rows = []
    for width in WIDTHS:
        config = family_member(
            width, expansion=experts, granularity=granularity, shared=bool(shared), vocab_size=vocab_size
        )
        active = accounting.active_parameters(config)
        embedding = sum(part.active_parameters for part in accounting.parts(config) if part.storage == "embedding")
        memory = accounting.file_bytes(config, weight_bits) + accounting.kv_bytes(config, context, kv_bits)
        rows.append((active / 1e9 if counts_embedding else (active - embedding) / 1e9, active / 1e9, memory))
    return Family(*np.log(np.array(rows)).T)
