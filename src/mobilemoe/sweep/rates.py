"""Estimates each model's best learning rate as the minimum of a parabola through the losses at several rates.

A rule is fitted to all of them: eta = eta0 (d0 / d)^a for width d.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mobilemoe.errors import DataError

AGREES = 1.4  # a rule is accepted if its rates are within this factor of the best ones
_ARM = ("experts", "granularity", "shared")


@dataclass(frozen=True)
class Best:
    """The best learning rate of one model and length; `inside`: whether it is between the rates tried.

    `gain`: its advantage over the rule's rate in nats, by the parabola.
    """

    dense: bool
    arm: str
    hidden_size: int
    tokens: int
    losses: dict[float, float]
    rate: float
    inside: bool
    gain: float


@dataclass(frozen=True)
class Rule:
    """eta0 at the reference's width and the exponent a; the best rates lie within a factor of `spread` of it."""

    learning_rate: float
    width_exponent: float
    spread: float


def best_rates(rows: Iterable[dict[str, str]]) -> list[Best]:
    """One entry for each model and length with at least three rates in a sweep's rows; seeds are averaged.

    Raises DataError if there is none.
    """
    groups: dict[tuple[str, ...], dict[float, list[float]]] = {}
    rules: dict[tuple[str, ...], float] = {}
    for row in rows:
        key = tuple(row[name] for name in (*_ARM, "hidden_size", "tokens"))
        rate = float(row["learning_rate"])
        groups.setdefault(key, {}).setdefault(rate, []).append(float(row["loss"]))
        rules[key] = rate / float(row["rate"])
    found = [_best(key, losses, rules[key]) for key, losses in sorted(groups.items()) if len(losses) >= 3]
    if not found:
        raise DataError("no model of this sweep has finished at three learning rates: run its block of rates first")
    return sorted(found, key=lambda best: (not best.dense, best.arm, best.hidden_size, best.tokens))


def _best(key: tuple[str, ...], by_rate: dict[float, list[float]], rule: float) -> Best:
    losses = {rate: float(np.mean(several)) for rate, several in sorted(by_rate.items())}
    x, y = np.log(list(losses)), np.array(list(losses.values()))
    curve = np.polynomial.Polynomial.fit(x, y, 2)
    bend = curve.convert().coef
    lowest = float(x[np.argmin(y)])
    inside = len(bend) > 2 and bend[2] > 0 and x[0] < -bend[1] / (2 * bend[2]) < x[-1]
    if inside:
        lowest = float(-bend[1] / (2 * bend[2]))
    experts, granularity, shared, width, tokens = map(int, key)
    return Best(
        dense=experts == 1,
        arm="dense" if experts == 1 else f"e{experts}g{granularity}s{shared}",
        hidden_size=width,
        tokens=tokens,
        losses=losses,
        rate=math.exp(lowest),
        inside=bool(inside),
        gain=float(curve(math.log(rule)) - curve(lowest)),
    )


def fit_rule(bests: list[Best], reference_width: int, width_exponent: float) -> Rule:
    """The rule nearest to these rates in logarithms; with one width alone it keeps `width_exponent`."""
    x = np.log([reference_width / best.hidden_size for best in bests])
    y = np.log([best.rate for best in bests])
    exponent = float(np.polyfit(x, y, 1)[0]) if np.ptp(x) > 0 else width_exponent
    offset = float(np.mean(y - exponent * x))
    spread = float(np.exp(np.abs(y - exponent * x - offset).max()))
    return Rule(float(f"{math.exp(offset):.4g}"), round(exponent, 3), spread)
