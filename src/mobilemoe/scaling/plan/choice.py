"""What decides among models: one score that depends on no limit, and the set that the law cannot tell apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mobilemoe.scaling.law.law import Law
from mobilemoe.scaling.plan.candidates import Array, Mask, Table, groups
from mobilemoe.scaling.plan.limits import LIMITS, Constraints, given

MOST_DIGITS = 4


def law_error(law: Law) -> tuple[float, str]:
    """The error of the law's losses in nats, and what it is: of its forecast where that was tried, else of its fit."""
    if law.forecast_rmse is not None:
        return law.forecast_rmse, "RMSE of its forecast"
    return law.rmse, "RMSE of its fit"


def digits(error: float) -> int:
    """The decimals of a loss that its error warrants: down to the first digit of the error."""
    return MOST_DIGITS if error <= 0 else min(max(-math.floor(math.log10(error)), 1), MOST_DIGITS)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of a table's models in nats a token, for one training budget.

    losses: the law's. predicted: with the stated priors. exact: with the preference for the family's depth and heads.
    """

    losses: Array
    predicted: Array
    exact: Array
    error: float

    @classmethod
    def of(cls, table: Table, law: Law, constraints: Constraints) -> Scores:
        losses, error = law.loss(table.points(constraints)), law_error(law)[0]
        predicted = losses + table.prior
        return cls(losses=losses, predicted=predicted, exact=predicted + table.preference(error), error=error)

    @property
    def digits(self) -> int:
        return digits(self.error)

    @property
    def rounded(self) -> Array:
        """The scores that rank: what the law's error does not warrant decides nothing."""
        return np.round(self.exact, self.digits)

    def equivalent(self, allowed: Mask) -> Mask:
        """The allowed models whose predicted loss is within the law's error of the least."""
        return np.asarray(allowed & (self.predicted <= self.predicted[allowed].min() + self.error))


@dataclass(frozen=True, kw_only=True)
class Equivalent:
    """The models that the law cannot tell from the best within the limits.

    least: their least predicted loss, priors included. error: the law's, in nats; error_of says which. The rest are the
    lowest and highest values among them.
    """

    count: int
    least: float
    error: float
    error_of: str
    experts: tuple[int, int]
    granularity: tuple[int, int]
    width: tuple[int, int]
    n_active: tuple[float, float]

    @classmethod
    def of(cls, table: Table, predicted: Array, law: Law) -> Equivalent:
        """Of a table with the equivalent models alone."""
        error, kind = law_error(law)
        ends = {name: _ends(getattr(table, name)) for name in ("experts", "granularity", "width")}
        return cls(
            count=len(table),
            least=float(predicted.min()),
            error=error,
            error_of=kind,
            n_active=(float(table.n_active.min()), float(table.n_active.max())),
            **ends,
        )


def _ends(values: Array) -> tuple[int, int]:
    return int(values.min()), int(values.max())


def ranked(table: Table, scores: Scores, allowed: Mask, constraints: Constraints) -> list[int]:
    """The places of the best allowed model of each E, g, s and bits, the best first.

    They are ordered by the rounded score; then those of the equivalent set come first, then the cheaper in the resource
    that the least score uses most of; then the exact score decides.
    """
    places = np.flatnonzero(allowed)
    keys = (
        scores.exact[places],
        _cost(table, constraints, int(places[np.argmin(scores.exact[places])]))[places],
        ~scores.equivalent(allowed)[places],
        scores.rounded[places],
    )
    order: NDArray[np.int64] = places[np.lexsort(keys)]
    place_in_order = np.empty(len(table), np.int64)
    place_in_order[order] = np.arange(len(order))
    best = [members[np.argmin(place_in_order[places[members]])] for members in groups(table.take(allowed))]
    return sorted((int(places[place]) for place in best), key=lambda place: place_in_order[place])


def _cost(table: Table, constraints: Constraints, best: int) -> Array:
    """The cost in the limit of which `best` leaves the least unused (memory if there is none); less is better."""
    used = {}
    for name in given(constraints):
        limit, bound = LIMITS[name], getattr(constraints, name)
        value = getattr(table, limit.column)[best]
        used[name] = value / bound if limit.at_most else bound / value
    limit = LIMITS[max(used, key=lambda name: used[name], default="memory")]
    values: Array = getattr(table, limit.column)
    return values if limit.at_most else -values
