"""Weak priors of the resamples, so that a constant that the runs leave open is uncertain instead of anywhere.

They act on the solver's coordinates, in which N, D and the loss are in units of the runs' own geometric means. In the
misfit they have the weight of the noise: a prior costs what it would in Bayes' rule if the residuals of ln L were
normal with the variance that the fit leaves over, so that priors vanish where runs are many or precise. Each resample
draws its own centres: a constant about which the runs say nothing then has the prior's interval, and not one of no
width. The law itself is fitted without priors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mobilemoe.scaling.law.forms import E_MAX, PHI
from mobilemoe.scaling.law.solver import Problem

Array = NDArray[np.float64]

# Centre and standard deviation of each coordinate. A, B and c are shares of the mean loss, in logarithms (A and B after
# the form's power); exponents of published laws lie between -.05 and -1.
PRIORS: dict[str, tuple[float, float]] = {
    "A": (np.log(0.2), 1.5),
    "B": (np.log(0.2), 1.5),
    "c": (np.log(0.6), 1.0),
    "alpha": (-0.35, 0.4),
    "beta": (-0.35, 0.4),
    "delta": (0.0, 1.0),
    "omega": (0.0, 1.0),
    "gamma": (0.0, 0.4),
    "zeta": (0.0, 0.4),
    "kappa": (0.0, 0.3),
    "phi": (np.log(PHI), 1.0),
    "sigma": (0.0, 0.3),
    "E_max": (np.log(E_MAX), 1.5),
}
SAID = (
    "weak and normal, in the intervals alone: A and B are 20% of the mean loss within a factor of 4.5, c 60% within "
    "2.7; alpha and beta -.35 +- .4; delta and omega 0 +- 1; gamma and zeta 0 +- .4; kappa and sigma 0 +- .3; phi .58 "
    "within 2.7; E_max 32 within 4.5 (one standard deviation each, N and D in units of the runs' geometric means)"
)


@dataclass(frozen=True)
class Prior:
    """Normal priors on a problem's coordinates; `noise` is the variance of ln L that they are weighed with."""

    centre: Array  # [free], or [S, free] for S starts
    spread: Array  # [free]: standard deviations
    noise: float

    @classmethod
    def of(cls, problem: Problem, misfit: float) -> Self:
        """The priors of the free parameters, for a fit that leaves this misfit over."""
        powers = [problem.form.power if name in ("A", "B") else 1.0 for name in problem.free]
        centre, spread = np.array([PRIORS[name] for name in problem.free]).T / powers
        freedom = max(len(problem.runs) - len(problem.free), 1)
        return cls(centre, spread, 2 * misfit / freedom)

    def drawn(self, rng: np.random.Generator, count: int) -> Self:
        """The same with the centres of `count` starts drawn from it."""
        shape = (count, len(self.spread))
        return replace(self, centre=self.centre + self.spread * rng.standard_normal(shape))

    def at(self, rows: slice | NDArray[np.intp]) -> Self:
        """The priors of some of the starts; all starts share them if nothing was drawn."""
        return self if self.centre.ndim == 1 else replace(self, centre=self.centre[rows])

    @property
    def curve(self) -> Array:
        """The second derivatives of the cost: [free]."""
        return self.noise / self.spread**2

    def cost(self, x: Array) -> Array:
        """What coordinates [S, free] add to the misfit: [S]."""
        result: Array = ((x - self.centre) ** 2 * self.curve).sum(-1) / 2
        return result

    def slope(self, x: Array) -> Array:
        """The derivatives of `cost`: [S, free]."""
        return (x - self.centre) * self.curve
