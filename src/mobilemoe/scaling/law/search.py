"""Finds the constants that fit runs best: starts by variable projection, then Gauss-Newton, then L-BFGS."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilemoe.errors import MissingExtraError
from mobilemoe.scaling.law.forms import terms
from mobilemoe.scaling.law.solver import HUBER, Problem, descend, misfit

Array = NDArray[np.float64]

DRAWS = 192  # random exponents, for each of which the best factors are found
STARTS = 32  # the best of them, from which Gauss-Newton takes some steps
FINALISTS = 4  # the best of these, from which it runs until it converges
POLISHED = 2  # the best of these, which L-BFGS refines


def search(problem: Problem, seed: int) -> tuple[Array, float, bool]:
    """The coordinates with the least misfit that was found, that misfit, and whether the search converged there."""
    ones = np.ones((1, len(problem.runs)))
    near = descend(problem, _starts(problem, seed), ones, steps=40)
    ended = descend(problem, near.x[np.argsort(near.misfit)[:FINALISTS]], ones, steps=400, tolerance=1e-7)
    best = np.argsort(ended.misfit)[:POLISHED]
    ends = [polish(problem, x, bool(done)) for x, done in zip(ended.x[best], ended.settled[best], strict=True)]
    return min(ends, key=lambda end: end[1])


def _starts(problem: Problem, seed: int) -> Array:
    """Coordinates [STARTS, free] to start from: random exponents, with the best factors A, B, c for them.

    The factors come from non-negative least squares.
    """
    try:
        from scipy.optimize import nnls
    except ModuleNotFoundError:
        raise MissingExtraError("fitting a law", "scaling") from None
    draw = np.random.default_rng(seed)
    x = np.zeros((DRAWS, len(problem.free)))
    spread: dict[str, tuple[float, float]] = {"alpha": (-1.0, -0.03), "beta": (-1.0, -0.03), "phi": (-1.5, 1.0)}
    spread |= {"kappa": (-0.1, 0.3), "sigma": (-0.1, 0.3), "E_max": (2.5, 6.5)}
    for place, name in enumerate(problem.free):
        if name not in ("A", "B", "c"):
            x[:, place] = draw.uniform(*spread.get(name, (-0.3, 0.3)), DRAWS)
    factors = [problem.free.index(name) for name in ("A", "B", "c")]
    whole = problem.whole(x)[:, None, :]  # the factors are e^0 so far: the terms are the columns of a linear problem
    parts = terms(problem.form, whole, problem.points)
    loss = np.exp(problem.log_loss)
    power, off = problem.form.power, np.empty(DRAWS)
    for row, (size, data) in enumerate(zip(parts.size, parts.data, strict=True)):
        if power == 1:
            design = np.stack([size, data, np.ones_like(size)], 1)
            found, off[row] = nnls(design / loss[:, None], np.ones(len(loss)))  # ln(p / L) is p / L - 1 near the loss
        else:  # with a drawn c, (L - c)^(1/k) is linear in A and B
            c = draw.uniform(0.2, 0.95) * loss.min()
            both = (loss - c) ** (1 / power)
            weight = power * (loss - c) / both / loss  # of an error of both, in ln L
            terms_of, off[row] = nnls(np.stack([size, data], 1) * weight[:, None], both * weight)
            found = np.array([*terms_of, c])
        x[row, factors] = np.log(np.maximum(found, 1e-3))
    best = x[np.argsort(off)[:STARTS]]
    return np.clip(best, *problem.bounds)


def polish(problem: Problem, x: Array, settled: bool) -> tuple[Array, float, bool]:
    """L-BFGS on the Huber loss, with exact derivatives: the end point, its misfit, and whether it converged."""
    from scipy.optimize import minimize

    ones = np.ones((1, len(problem.runs)))
    before = float(misfit(problem.residuals(x[None]), ones)[0])
    unit = max(before, 1e-18)  # the misfit is of the order of 1e-6 a run, and L-BFGS' own tolerances are for 1

    def value(at: Array) -> tuple[float, Array]:
        residuals, slopes = problem.slopes(at[None])
        pull = np.clip(residuals[0], -HUBER, HUBER)
        return float(misfit(residuals, ones)[0]) / unit, slopes[0] @ pull / unit

    bounds: Any = list(zip(*problem.bounds, strict=True))
    ended = minimize(value, x, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 300, "ftol": 1e-12})
    after = float(ended.fun) * unit
    if after < before:
        return np.asarray(ended.x), after, settled or bool(ended.success)
    return x, before, settled or bool(ended.success)
