# ruff: noqa: RUF001, RUF002 (the formulas are written with the Greek letters of the papers)
"""The scaling laws as formulas: every form is one general law with some terms fixed at "no effect".

    L = (A x^δ N^(α + γ ln x) (1 - κ + κ g^-φ) e^(-σ s) + B x^ω D^(β + ζ ln x))^k + c        nats a token

k is 1 in all forms but `root`; N active parameters and D training tokens, both in 1e9; g granularity; s shared expert
(0 or 1); x the form's own knob: for `experts` the saturating count Ê of spec section 4, for `granularity` g itself, for
`shared` e^s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mobilemoe.errors import UsageError
from mobilemoe.scaling.law.runs import Points

Array = NDArray[np.float64]
Knob = Literal["experts", "granularity", "shared"]

NAMES = ("A", "delta", "alpha", "gamma", "kappa", "phi", "sigma", "B", "omega", "beta", "zeta", "c", "E_max")
INDEX = {name: place for place, name in enumerate(NAMES)}
PHI = 0.58  # arXiv 2402.07871: the exponent of granularity, if the runs do not determine it
E_MAX = 32.0  # spec section 4
K_ROOT = 0.58  # of 171 runs of our second and fourth sweep, docs/scaling.md#the-fifth-sweep-as-registered
NO_EFFECT = {"delta": 0.0, "gamma": 0.0, "kappa": 0.0, "phi": PHI, "sigma": 0.0, "omega": 0.0, "zeta": 0.0}
NO_EFFECT |= {"E_max": E_MAX}
BLANK = np.array([NO_EFFECT.get(name, 0.0) for name in NAMES])

_CHINCHILLA = ("A", "alpha", "B", "beta", "c")
_KNOB = ("A", "delta", "alpha", "gamma", "B", "omega", "beta", "zeta", "c")
_PAPER = "MobileMoE, arXiv 2605.27358, spec section 4"


@dataclass(frozen=True, kw_only=True)
class Form:
    """A law without constants. `parameters` are those of NAMES that it has; the others have no effect."""

    name: str
    formula: str
    parameters: tuple[str, ...]
    source: str
    knob: Knob | None = None  # the quantity x; None: the form has no x
    power: float = 1.0  # k
    columns: tuple[str, ...] = ()  # the columns it needs besides n_active and tokens

    def full(self, theta: Array) -> Array:
        """Expands `theta` [..., parameters of this form] to [..., all of NAMES]."""
        whole = np.tile(BLANK, (*theta.shape[:-1], 1))
        whole[..., [INDEX[name] for name in self.parameters]] = theta
        return whole

    def loss(self, theta: Array, points: Points) -> Array:
        """The loss in nats a token of `theta` [..., parameters] at `points`: shape [..., *points' shape]."""
        whole = self.full(np.asarray(theta, np.float64))
        spread = whole.reshape(*whole.shape[:-1], *(1 for _ in points.shape), len(NAMES))
        return self.reducible(terms(self, spread, points)) + spread[..., INDEX["c"]]

    def reducible(self, parts: Terms) -> Array:
        """What more parameters and more tokens can take away: the loss without c, from the terms of N and D."""
        both: Array = parts.size + parts.data
        return both if self.power == 1 else both**self.power


class Terms(NamedTuple):
    """The parts of the law at some points, from which the loss and its derivatives are computed."""

    size: Array  # the term of N
    data: Array  # the term of D
    log_x: Array
    fine: Array  # 1 - κ + κ g^-φ
    log_g: Array


def terms(form: Form, whole: Array, points: Points) -> Terms:
    """The terms of `whole` [..., NAMES], whose axes before the last broadcast against those of the points."""
    A, delta, alpha, gamma, kappa, phi, sigma, B, omega, beta, zeta, _, E_max = np.moveaxis(whole, -1, 0)
    log_g = np.log(points.granularity)
    if form.knob == "experts":
        log_x = np.log(effective_experts(points.experts, E_max))
    elif form.knob == "granularity":
        log_x = log_g
    elif form.knob == "shared":
        log_x = points.shared
    else:
        log_x = np.zeros(points.shape)
    fine = np.ones(points.shape)
    if "kappa" in form.parameters:
        fine = 1 - kappa + kappa * np.exp(-phi * log_g)
    size = A * fine * np.exp(delta * log_x + (alpha + gamma * log_x) * np.log(points.n_active) - sigma * points.shared)
    data = B * np.exp(omega * log_x + (beta + zeta * log_x) * np.log(points.tokens))
    return Terms(size, data, log_x, fine, log_g)


def effective_experts(experts: Any, E_max: Any = E_MAX) -> Array:
    """Ê of spec section 4 with E_start 1: it is 1 for a dense model, and saturates at E_max."""
    result: Array = 1 / (1 / (experts - 1 + 1 / (1 - 1 / E_max)) + 1 / E_max)
    return result


def in_units(theta: Array, form: Form, n_unit: float, d_unit: float) -> Array:
    """The parameters of the same law for N in multiples of `n_unit` and D in multiples of `d_unit`.

    `theta` [..., P] are the parameters for the units as they are.
    """
    place = {name: form.parameters.index(name) for name in form.parameters}
    changed = np.array(theta, np.float64)
    for factor, power, main, cross, unit in (
        ("A", "alpha", "delta", "gamma", n_unit),
        ("B", "beta", "omega", "zeta", d_unit),
    ):
        changed[..., place[factor]] *= unit ** changed[..., place[power]]
        if cross in place:
            changed[..., place[main]] += changed[..., place[cross]] * np.log(unit)
    return changed


FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        Form(
            name="chinchilla",
            formula="L = A N^α + B D^β + c",
            parameters=_CHINCHILLA,
            source="Hoffmann et al. 2022, arXiv 2203.15556",
        ),
        Form(
            name="paper-E",
            formula="L = A Ê^δ N^(α + γ ln Ê) + B Ê^ω D^(β + ζ ln Ê) + c, 1/Ê = 1/(E + 1/31) + 1/32",
            parameters=_KNOB,
            source=f"{_PAPER}: the law of the expert count, E_start 1, E_max 32",
            knob="experts",
            columns=("experts",),
        ),
        Form(
            name="root",
            formula="L = (A Ê^δ N^(α + γ ln Ê) + B Ê^ω D^(β + ζ ln Ê))^.58 + c, 1/Ê = 1/(E + 1/31) + 1/32",
            parameters=_KNOB,
            source="ours: paper-E to a power, as in Kaplan et al. 2020, arXiv 2001.08361, equation 1.5",
            knob="experts",
            power=K_ROOT,
            columns=("experts",),
        ),
        Form(
            name="paper-g",
            formula="L = A g^δ N^(α + γ ln g) + B g^ω D^(β + ζ ln g) + c",
            parameters=_KNOB,
            source=f"{_PAPER}: the law of granularity; that x is g itself is our reading",
            knob="granularity",
            columns=("granularity",),
        ),
        Form(
            name="paper-s",
            formula="L = A e^(δ s) N^(α + γ s) + B e^(ω s) D^(β + ζ s) + c",
            parameters=_KNOB,
            source=f"{_PAPER}: the law of the shared expert; that x is e^s is our reading",
            knob="shared",
            columns=("shared",),
        ),
        Form(
            name="joint-moe",
            formula="L = A Ê^δ N^(α + γ ln Ê) + B Ê^ω D^(β + ζ ln Ê) + c, "
            "1/Ê = 1/(E - 1 + 1/(1 - 1/E_max)) + 1/E_max, E_max fitted",
            parameters=(*_KNOB, "E_max"),
            source="Ludziejewski et al. 2025, arXiv 2502.05172, with E_start 1",
            knob="experts",
            columns=("experts",),
        ),
        Form(
            name="fine-grained",
            formula="L = A (1 - κ + κ g^-φ) N^α + B D^β + c",
            parameters=("A", "alpha", "kappa", "phi", "B", "beta", "c"),
            source="Krajewski et al. 2024, arXiv 2402.07871: L = c + (γ/g^φ + a)/N^α + b/D^β, with A = a + γ, κ = γ/A",
            columns=("granularity",),
        ),
        Form(
            name="joint",
            formula="L = A Ê^δ N^(α + γ ln Ê) (1 - κ + κ g^-φ) e^(-σ s) + B Ê^ω D^(β + ζ ln Ê) + c, "
            "1/Ê = 1/(E + 1/31) + 1/32",
            parameters=NAMES[:-1],
            source="ours: paper-E where g and s are fixed, fine-grained where E and s are, chinchilla for dense models",
            knob="experts",
            columns=("experts", "granularity", "shared"),
        ),
    )
}


def form_named(name: str) -> Form:
    """The form called `name`; UsageError lists the names."""
    try:
        return FORMS[name]
    except KeyError:
        raise UsageError(f"there is no law {name!r}: choose one of {', '.join(FORMS)}") from None
