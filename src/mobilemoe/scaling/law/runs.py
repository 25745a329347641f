"""Finished trainings: their N, D, E, g, s, and the loss that they reached."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilemoe.errors import UsageError

Array = NDArray[np.float64]

BILLION = 1e9
FIELDS = ("n_active", "tokens", "experts", "granularity", "shared")  # of Points
LEAST = {"n_active": 0.0, "tokens": 0.0, "experts": 1.0, "granularity": 1.0, "shared": 0.0}


@dataclass(frozen=True, kw_only=True)
class Points:
    """Points at which a law is evaluated: arrays that are broadcast together and made float64 here.

    n_active and tokens in 1e9; experts is the expansion E (1: dense), granularity g, shared 0 or 1. A dense point has
    granularity 1 and shared 0. Raises UsageError for values that no model can have.
    """

    n_active: Array
    tokens: Array
    experts: Any = 1.0
    granularity: Any = 1.0
    shared: Any = 0.0

    def __post_init__(self) -> None:
        try:
            arrays = np.broadcast_arrays(*(np.asarray(getattr(self, name), np.float64) for name in FIELDS))
        except ValueError as fault:
            raise UsageError(f"the columns of these points do not fit together: {fault}") from None
        for name, values in zip(FIELDS, arrays, strict=True):
            least = LEAST[name]
            allowed = values > 0 if name in ("n_active", "tokens") else values >= least
            wrong = values[~(np.isfinite(values) & allowed)]
            if wrong.size:
                raise UsageError(f"{name} is {wrong.flat[0]:g}, but must be a number {_rule(name)}")
            object.__setattr__(self, name, values)

    @property
    def shape(self) -> tuple[int, ...]:
        return np.shape(self.n_active)

    def __len__(self) -> int:
        return int(np.size(self.n_active))

    def at(self, index: Any) -> Points:
        """The points that a NumPy index or mask picks."""
        return Points(**{name: getattr(self, name)[index] for name in FIELDS})


def _rule(name: str) -> str:
    return f"above {LEAST[name]:g}" if name in ("n_active", "tokens") else f"of at least {LEAST[name]:g}"


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Finished trainings, one per entry of every array. `notes` say how the table was read and what was left out."""

    points: Points  # one-dimensional
    loss: Array  # nats a token
    ids: tuple[str, ...]
    repeated: NDArray[np.bool_]  # the run saw some data more than once
    counts_embedding: bool | None = None  # does n_active count the embedding? None: unknown
    held_out: NDArray[np.bool_] | None = None  # registered to be predicted; None if the table does not say
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def flops(self) -> Array:
        """Training compute, 6 N D."""
        result: Array = 6 * BILLION**2 * self.points.n_active * self.points.tokens
        return result

    def at(self, index: Any) -> Runs:
        """The runs that a NumPy index or mask picks."""
        picked = np.arange(len(self))[index]
        return Runs(
            points=self.points.at(picked),
            loss=self.loss[picked],
            ids=tuple(self.ids[place] for place in picked),
            repeated=self.repeated[picked],
            counts_embedding=self.counts_embedding,
            held_out=None if self.held_out is None else self.held_out[picked],
            notes=self.notes,
        )


def few(items: Iterable[str], most: int = 3) -> str:
    """The first names of a list, for a sentence."""
    listed = list(items)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")
