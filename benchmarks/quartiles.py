"""The quartiles of what a benchmark repeated, the same for all of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile of at least one value.

    Values between two of the sample are interpolated, so none lies outside of it. One value is all three.
    """
    if len(values) == 1:  # before Python 3.13 `quantiles` refuses it
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
