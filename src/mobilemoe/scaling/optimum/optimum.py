"""The lowest loss of a law for a given training compute, and within a device's memory if that is given.

Notation as in docs/scaling.md, which derives both: N active parameters and D training tokens (both in 1e9), C training
FLOPs, E expansion, g granularity, s shared expert.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mobilemoe.counted import counted
from mobilemoe.errors import UsageError
from mobilemoe.paper import SWEPT
from mobilemoe.presets import family_knobs
from mobilemoe.scaling.law.forms import FORMS, INDEX, terms
from mobilemoe.scaling.law.law import Law
from mobilemoe.scaling.law.runs import Points
from mobilemoe.scaling.optimum.family import Family, family

Array = NDArray[np.float64]
Knobs: TypeAlias = tuple[int, int, int]  # E, g and s

REACH = 1e3  # without a memory, N is sought within this factor of sqrt(C/6), where it equals D
STEPS = 9  # points that one step of the search evaluates
PRECISION = 1e-8  # of ln N
AT_END = 1e-6  # an optimum nearer than this, in ln N, lies at the end of its range


class Band(NamedTuple):
    """A value and its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The best model of one (E, g, s)."""

    experts: int
    granularity: int
    shared: int
    n_active: Band  # 1e9
    tokens: Band  # 1e9
    loss: Band  # nats a token
    memory_bytes: float | None  # None without a memory limit
    binding: tuple[str, ...]  # the constraints that keep the loss from falling
    share: float | None  # of the bootstrap samples in which no other choice is better; None without samples
    warnings: tuple[str, ...]  # whether it is outside the law's domain or at the end of the search's range


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The best choice and all others, the best first; the bands of the fields here leave E, g and s free as well."""

    choices: tuple[Choice, ...]
    n_active: Band
    tokens: Band
    experts: Band
    loss: Band
    interval: str  # what the bands mean

    @property
    def best(self) -> Choice:
        return self.choices[0]


@dataclass(frozen=True)
class _Line:
    """The models of one (E, g, s) that fit: one for each N from low to high (1e9)."""

    knobs: Knobs
    low: float
    high: float
    tokens: Callable[[Array], Array]  # D of N, both in 1e9
    length: str  # the constraint that sets D
    memory: Callable[[Array], Array] | None = None  # bytes of N
    memory_ends_it: bool = False  # whether a larger N would not fit

    def points(self, n: Array) -> Points:
        experts, granularity, shared = self.knobs
        return Points(n_active=n, tokens=self.tokens(n), experts=experts, granularity=granularity, shared=shared)


def optimum(
    law: Law,
    *,
    train_flops: float | None = None,
    tokens: float | None = None,
    memory_bytes: float | None = None,
    choices: Sequence[Knobs] | None = None,
    vocab_size: int = 128_256,
    context: int = 4096,
    level: float = 0.9,
) -> Optimum:
    """The N and D of least loss for each (E, g, s) of `choices`, and the best of them (docs/scaling.md, "The optimum").

    Training has `train_flops` (C) or `tokens` (D, in 1e9). Without `memory_bytes` only C counts,
    and D = C / (6 N). With it, the members of the family must fit: their INT4 weights, and the int8 KV cache of
    `context` tokens; their FLOPs count the embedding, as in spec section 4, also where the law's N does not.
    choices: by default `known_choices`. level: of the intervals. UsageError if no member fits, and for bad numbers.
    """
    if (train_flops is None) == (tokens is None):
        raise UsageError("the optimum needs either train_flops or tokens, and not both")
    if memory_bytes is None and train_flops is None:
        raise UsageError("with tokens alone no model is the best: the optimum needs train_flops or memory_bytes")
    for name, value in (("train_flops", train_flops), ("tokens", tokens), ("memory_bytes", memory_bytes)):
        if value is not None and not 0 < value < np.inf:
            raise UsageError(f"{name} is {value}, but must be a positive number")
    if not 0 < level < 1:
        raise UsageError(f"level is {level}, but must lie between 0 and 1")
    choices = known_choices(law) if choices is None else choices
    if not choices:
        raise UsageError("there are no choices of E, g and s")
    if memory_bytes is None:
        budget = (train_flops or 0) / 6e18
        low, high = np.sqrt(budget) / REACH, np.sqrt(budget) * REACH
        return _solve(
            law, [_Line(knobs, low, high, lambda n: budget / n, "training FLOPs") for knobs in choices], level
        )
    counts = law.counts_embedding is not False
    members = {
        knobs: family(knobs, counts_embedding=counts, vocab_size=vocab_size, context=context) for knobs in choices
    }
    lines = [
        _line_within(memory_bytes, knobs, each, train_flops, tokens)
        for knobs, each in members.items()
        if each.least_memory <= memory_bytes
    ]
    if not lines:
        smallest = min(each.least_memory for each in members.values())
        raise UsageError(
            f"memory_bytes is {memory_bytes:.4g}, but the smallest member needs {smallest:.4g} with a vocabulary of "
            f"{vocab_size:,} and a context of {context:,}: give more memory, or a smaller vocab_size or context"
        )
    return _solve(law, lines, level)


def known_choices(law: Law) -> list[Knobs]:
    """Every (E, g, s) of the paper's sweep that the law can choose among."""
    return sorted(family_knobs(*(known_values(law, name) for name in SWEPT)))


def known_values(law: Law, knob: str) -> tuple[int, ...]:
    """The values of a knob in the paper's sweep that the law can choose among, or the only one that its runs had."""
    return law.known(knob, SWEPT[knob]) or (round(law.domain[knob][0]),)


def _line_within(
    memory_bytes: float, knobs: Knobs, members: Family, train_flops: float | None, tokens: float | None
) -> _Line:
    (low, widest), high = members.range, members.largest(memory_bytes)

    def tokens_of(n: Array) -> Array:
        if tokens is not None:
            return np.full_like(n, tokens)
        return (train_flops or 0) / 6e18 / members.active(n)

    length = "tokens" if train_flops is None else "training FLOPs"
    return _Line(knobs, low, high, tokens_of, length, members.memory, memory_ends_it=high < widest)


class _Models(NamedTuple):
    """Several models, one at each place of the arrays."""

    experts: Array
    n_active: Array
    tokens: Array
    loss: Array


def _solve(law: Law, lines: Sequence[_Line], level: float) -> Optimum:
    """The lowest loss on every line.

    An interval covers the optima under the law's samples, or without samples all models whose loss is within the fit's
    RMSE of the least.
    """
    least = [_least(law, law.theta[None], line) for line in lines]
    losses = np.array([models.loss[0] for models in least])
    first = int(losses.argmin())
    shares: list[float | None] = [None] * len(lines)
    if law.samples is None:
        ends, interval = (0.0, 1.0), f"all within the fit's RMSE ({law.rmse:.3g} nats) of the least loss"
        # The optimum itself is added, since the others are found in steps that may be coarser than the RMSE.
        covered = [_joined([_near(law, line, own.loss[0]), own]) for line, own in zip(lines, least, strict=True)]
        overall = _joined([*(_near(law, line, losses[first]) for line in lines), least[first]])
    else:
        ends, interval = (
            ((1 - level) / 2, (1 + level) / 2),
            f"{level:.0%} of {counted(len(law.samples), 'bootstrap sample')}",
        )
        covered = [_least(law, law.samples, line) for line in lines]
        winners = np.argmin([models.loss for models in covered], axis=0)
        overall = _Models(*(np.choose(winners, field) for field in zip(*covered, strict=True)))
        shares = [float(np.mean(winners == place)) for place in range(len(lines))]

    def band(field: str, models: _Models, best: _Models) -> Band:
        low, high = np.quantile(getattr(models, field), ends)
        return Band(float(getattr(best, field)[0]), float(low), float(high))

    found = []
    for place in losses.argsort(kind="stable"):
        line, best, models = lines[place], least[place], covered[place]
        experts, granularity, shared = line.knobs
        binding, warnings = _ends(law, line, best)
        found.append(
            Choice(
                experts=experts,
                granularity=granularity,
                shared=shared,
                n_active=band("n_active", models, best),
                tokens=band("tokens", models, best),
                loss=band("loss", models, best),
                memory_bytes=None if line.memory is None else float(line.memory(best.n_active)[0]),
                binding=binding,
                share=shares[place],
                warnings=warnings,
            )
        )
    return Optimum(
        choices=tuple(found), interval=interval, **{name: band(name, overall, least[first]) for name in _Models._fields}
    )


def _least(law: Law, theta_RP: Array, line: _Line) -> _Models:
    """The model of least loss for each of R rows of parameters.

    The loss along a line has one minimum in ln N. So the range shrinks, again and again, to the neighbours of the best
    of STEPS places (G).
    """
    form = FORMS[law.form]
    whole_R1P = form.full(theta_RP)[:, None, :]

    def losses(log_n_RG: Array) -> Array:
        parts = terms(form, whole_R1P, line.points(np.exp(log_n_RG)))
        return form.reducible(parts) + whole_R1P[..., INDEX["c"]]

    low_R1 = np.full((len(theta_RP), 1), np.log(line.low))
    high_R1 = np.full((len(theta_RP), 1), np.log(line.high))
    while np.max(high_R1 - low_R1) > PRECISION:
        log_n_RG = low_R1 + (high_R1 - low_R1) * np.linspace(0, 1, STEPS)
        best_R1 = losses(log_n_RG).argmin(axis=1)[:, None]
        low_R1 = np.take_along_axis(log_n_RG, np.maximum(best_R1 - 1, 0), axis=1)
        high_R1 = np.take_along_axis(log_n_RG, np.minimum(best_R1 + 1, STEPS - 1), axis=1)
    middle_R1 = (low_R1 + high_R1) / 2
    n_R = np.exp(middle_R1[:, 0])
    return _Models(np.full_like(n_R, line.knobs[0]), n_R, line.tokens(n_R), losses(middle_R1)[:, 0])


def _joined(models: Sequence[_Models]) -> _Models:
    return _Models(*(np.concatenate(field) for field in zip(*models, strict=True)))


def _near(law: Law, line: _Line, least: float) -> _Models:
    """The models on a line whose loss is within the RMSE of `least`; the losses given are `least` -/+ the RMSE."""
    n = np.geomspace(line.low, line.high, 4001)
    n = n[law.loss(line.points(n)) <= least + law.rmse]
    loss = np.array([least - law.rmse, least + law.rmse])
    return _Models(np.full_like(n, line.knobs[0]), n, line.tokens(n), loss)


def _ends(law: Law, line: _Line, best: _Models) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The binding constraints at the optimum of a line, and warnings about it."""
    n = best.n_active
    warnings = law.outside(line.points(n))
    binding = [line.length]
    at_low, at_high = np.log(n[0] / line.low) < AT_END, np.log(line.high / n[0]) < AT_END
    if at_high and line.memory_ends_it:
        binding.append("memory")
    elif at_low or at_high:
        warnings.append(f"the loss is least at the end of the search, {n[0]:.3g}B active parameters")
    return tuple(binding), tuple(warnings)
