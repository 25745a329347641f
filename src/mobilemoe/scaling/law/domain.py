"""Where the runs behind a law lie: the convex hull of their (ln N, ln D), since a box of ranges may claim too much."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mobilemoe.errors import MissingExtraError
from mobilemoe.scaling.law.runs import Points

Array = NDArray[np.float64]
Hull: TypeAlias = tuple[tuple[float, float], ...]  # (N, D) in 1e9, counterclockwise in (ln N, ln D)

SLACK = 1e-6  # of ln N and ln D: runs on the border are inside
THIN = 0.4  # of the box of the ranges: a hull of a smaller area is a ribbon, which `fit` warns of


def hull_of(points: Points) -> Hull:
    """The corners of the convex hull of (ln N, ln D); two if all points lie on one line. Needs SciPy."""
    try:
        from scipy.spatial import ConvexHull, QhullError
    except ModuleNotFoundError:
        raise MissingExtraError("fitting a law", "scaling") from None
    logs = _logs(points)
    try:
        corners = ConvexHull(logs).vertices
    except QhullError:
        corners = np.lexsort((logs[:, 1], logs[:, 0]))[[0, -1]]
    n, d = points.n_active.ravel(), points.tokens.ravel()
    return tuple((float(n[place]), float(d[place])) for place in corners)


def within(hull: Hull, points: Points) -> NDArray[np.bool_]:
    """For each point, whether its N and D lie in the hull or on its border; for two corners, on the line between."""
    logs = np.log(np.array(hull))
    sides = np.roll(logs, -1, axis=0) - logs
    lengths = np.maximum(np.hypot(*sides.T), SLACK)
    off = _logs(points)[:, None] - logs
    # The distance to the left of each side: a cross product over the side's length.
    left = (sides[:, 0] * off[..., 1] - sides[:, 1] * off[..., 0]) / lengths
    along = (sides * off).sum(-1) / lengths
    inside = (left >= -SLACK).all(1) & ((len(hull) > 2) | (along >= -SLACK).all(1))
    return np.asarray(inside.reshape(points.shape))


def share_of_box(hull: Hull) -> float:
    """The hull's area over that of the box of its ranges, in logarithms; 1 for a full grid of N and D."""
    x, y = np.log(np.array(hull)).T
    area = 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))
    box = float(np.ptp(x) * np.ptp(y))
    return area / box if box > 0 else 0.0


def _logs(points: Points) -> Array:
    return np.log(np.stack([points.n_active.ravel(), points.tokens.ravel()], axis=1))
