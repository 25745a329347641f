"""How often routed experts were in memory when they were needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ExpertUse:
    """Visits of routed experts: those in memory (`hits`), on their way (`ahead`) or neither (`misses`).

    `places` of `experts` may be in memory, each of `expert_bytes`; `bytes_read` have come from the file.
    """

    hits: int
    ahead: int
    misses: int
    bytes_read: int
    places: int
    experts: int
    expert_bytes: int


def hit_rate(counts: Mapping[str, int]) -> float | None:
    """The share of visits whose expert was in memory, and not only on its way, by ExpertUse's names; None of none."""
    visits = sum(counts[name] for name in ("hits", "ahead", "misses"))
    return counts["hits"] / visits if visits else None
