"""How long a client that found the queue full should wait before it asks again."""

from __future__ import annotations

from collections.abc import Sequence

_NEWEST = 0.2  # the share of the newest text in the mean


class Pace:
    """The mean time for which texts hold their places; recent ones count more."""

    def __init__(self) -> None:
        self._mean: float | None = None

    def ended(self, seconds: float) -> None:
        """A text held its place for `seconds`."""
        self._mean = seconds if self._mean is None else (1 - _NEWEST) * self._mean + _NEWEST * seconds

    def seconds_until(self, waiting: Sequence[int], ages: Sequence[float], places: int) -> float:
        """The time until a request leaves the queue.

        `waiting` are the texts that each request still has in it, `ages` the seconds for which running texts have held
        theirs of the `places`.
        """
        fewest = min(waiting, default=1)
        # All give one text in each round, and the first with the fewest leaves in the last of its rounds.
        joins = (fewest - 1) * len(waiting) + (waiting.index(fewest) + 1 if waiting else 1)
        ends = sorted([0.0] * (places - len(ages)) + [self._left(age) for age in ages])
        rounds, place = divmod(joins - 1, len(ends))
        return ends[place] + rounds * (self._mean or 0.0)

    def _left(self, age: float) -> float:
        """A place is held for the mean time; whoever has held it for longer may do so for as long again."""
        return self._mean - age if self._mean is not None and age < self._mean else age
