"""What the curves of a report show: a law, a line for each (E, g, s), and the ranges of the axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mobilemoe.presets import DENSE
from mobilemoe.scaling.law.law import Law
from mobilemoe.scaling.law.runs import Points
from mobilemoe.scaling.optimum.family import Family, family
from mobilemoe.scaling.optimum.optimum import Knobs, Optimum, optimum

Array = NDArray[np.float64]

PLACES = 400  # along a curve over size
DRAWN_SAMPLES = 500  # of the bootstrap, for bands in pictures
STRETCH = 3.0  # curves go so far beyond the domain, to show where it ends


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A law, the family, and a line for each E; all lines but the dense one have the same g and s."""

    law: Law
    experts: Sequence[int]
    granularity: int
    shared: int
    flops: tuple[float, float]  # least and largest training compute in the runs behind the law
    vocab_size: int
    context: int

    @cached_property
    def lines(self) -> dict[Knobs, Family]:
        """The family's sizes by (E, g, s)."""
        every = [DENSE if e == 1 else (e, self.granularity, self.shared) for e in self.experts]
        return {
            knobs: family(
                knobs,
                counts_embedding=self.law.counts_embedding is not False,
                vocab_size=self.vocab_size,
                context=self.context,
            )
            for knobs in every
        }

    @property
    def law_for_bands(self) -> Law:
        """The law with no more samples than a picture needs."""
        samples = self.law.samples
        return self.law if samples is None else replace(self.law, samples=samples[:DRAWN_SAMPLES])

    def optimum(self, law: Law, flops: float) -> Optimum:
        """The optimum where training compute alone counts."""
        return optimum(law, train_flops=flops, choices=list(self.lines))

    def within(self, memory_bytes: float, flops: float) -> Optimum:
        """The optimum within the device's memory; its intervals come from the RMSE, not from samples."""
        return optimum(
            replace(self.law, samples=None),
            memory_bytes=memory_bytes,
            train_flops=flops,
            context=self.context,
            vocab_size=self.vocab_size,
            choices=list(self.lines),
        )

    def sizes(self, knobs: Knobs) -> Array:
        """N along the line of `knobs`: the domain and a factor STRETCH beyond it, where the family has members. May be
        empty.
        """
        low, high = self.law.domain["n_active"]
        least, most = self.lines[knobs].range
        start, end = max(low / STRETCH, least), min(high * STRETCH, most)
        return np.geomspace(start, end, PLACES) if start < end else np.empty(0)

    def points(self, knobs: Knobs, n: Array, tokens: Array) -> Points:
        experts, granularity, shared = knobs
        return Points(n_active=n, tokens=tokens, experts=experts, granularity=granularity, shared=shared)

    def budgets(self, shares: Sequence[float]) -> list[float]:
        """Training compute at these shares of the way from the least to the largest, in logarithms."""
        low, high = np.log(self.flops)
        return [float(np.exp(low + share * (high - low))) for share in shares]

    def levels(self, shares: Sequence[float]) -> list[float]:
        """The losses below which these shares of the models in the domain lie."""
        n, tokens = (np.geomspace(*self.law.domain[name], 30) for name in ("n_active", "tokens"))
        every = [self.points(knobs, n[:, None], tokens) for knobs in self.lines]
        losses = np.concatenate([self.law.loss(points)[self.law.covers(points)] for points in every])
        if not losses.size:  # a ribbon between the places of the grid
            losses = np.concatenate([self.law.loss(points).ravel() for points in every])
        return [float(level) for level in np.quantile(losses, shares)]
