"""Where a law is least: with the training compute given, and with a device's memory given too.

Notation as in docs/scaling.md, which derives both: N active parameters and D training tokens (both in 1e9), C training
FLOPs, M bytes on the device, E expansion, g granularity, s shared expert.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mobilemoe.accounting import WeightBits
from mobilemoe.errors import UsageError
from mobilemoe.scaling.law.forms import FORMS, INDEX, terms
from mobilemoe.scaling.law.law import Law
from mobilemoe.scaling.law.runs import Points
from mobilemoe.scaling.optimum.family import Family, family

Array = NDArray[np.float64]

KNOBS = {"experts": (1, 2, 4, 8, 16, 32), "granularity": (1, 2, 4, 8, 16), "shared": (0, 1)}  # the paper's sweep
PUBLISHED = {"experts": 8, "granularity": 8, "shared": 1}  # S, M and L
DENSE = (1, 1, 0)  # E, g and s of the dense model
REACH = 1e3  # N is sought within this factor of sqrt(C/6), where it equals D
STEPS = 9  # in which a range of N is looked through
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
    memory_bytes: float | None  # None where memory was no question
    binding: tuple[str, ...]  # the constraints that keep the loss from falling
    share: float | None  # of the bootstrap samples in which no other choice is better; None without samples
    warnings: tuple[str, ...]  # where it leaves the law's domain or the search's range


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
    """The models of one (E, g, s) that the constraints allow: one for each N from low to high (1e9)."""

    knobs: tuple[int, int, int]
    low: float
    high: float
    tokens: Callable[[Array], Array]  # D of N, both in 1e9
    length: str  # the constraint that sets D
    memory: Callable[[Array], Array] | None = None  # bytes of N
    memory_ends_it: bool = False  # whether a larger N would not fit

    def points(self, n: Array) -> Points:
        experts, granularity, shared = self.knobs
        return Points(n_active=n, tokens=self.tokens(n), experts=experts, granularity=granularity, shared=shared)


def compute_optimum(
    law: Law,
    train_flops: float,
    *,
    experts: Sequence[int] | None = None,
    granularity: Sequence[int] | None = None,
    shared: Sequence[int] | None = None,
    level: float = 0.9,
) -> Optimum:
    """The N and D = C/(6N) of least loss for each (E, g, s), and the best of them (docs/scaling.md, "The optimum").

    train_flops: C. Knobs that are not given take the paper's values inside the law's domain. level: of the intervals.
    Raises UsageError for a budget that is not positive and for knobs that make no model.
    """
    budget = _positive("train_flops", train_flops) / 6e18
    middle = np.sqrt(budget)
    lines = [
        _Line(knobs, middle / REACH, middle * REACH, lambda n: budget / n, "training FLOPs")
        for knobs in choices(law, experts, granularity, shared)
    ]
    return _solve(law, lines, level)


def constrained_optimum(
    law: Law,
    *,
    memory_bytes: float,
    train_flops: float | None = None,
    tokens: float | None = None,
    context: int = 4096,
    weight_bits: WeightBits = 4,
    kv_bits: int = 8,
    vocab_size: int = 128_256,
    experts: Sequence[int] | None = None,
    granularity: Sequence[int] | None = None,
    shared: Sequence[int] | None = None,
    level: float = 0.9,
) -> Optimum:
    """The same with weights and KV cache within `memory_bytes` (docs/scaling.md, "With the device's memory").

    Either train_flops, C, or tokens, D in 1e9, says how long the training is. FLOPs count the embedding, as in spec
    section 4, also where the law's N does not. Raises UsageError if no member fits, and as `compute_optimum` does.
    """
    if (train_flops is None) == (tokens is None):
        raise UsageError("the optimum needs either train_flops or tokens, and not both")
    _positive("memory_bytes", memory_bytes)
    lines, smallest = [], np.inf
    for knobs in choices(law, experts, granularity, shared):
        members = family(
            *knobs,
            vocab_size=vocab_size,
            context=context,
            weight_bits=weight_bits,
            kv_bits=kv_bits,
            counts_embedding=law.counts_embedding is not False,
        )
        smallest = min(smallest, members.least_memory)
        if memory_bytes < members.least_memory:
            continue
        if tokens is None:
            length, tokens_of = "training FLOPs", _spending(members, _positive("train_flops", train_flops) / 6e18)
        else:
            length, tokens_of = "tokens", _always(_positive("tokens", tokens))
        (low, widest), high = members.range, members.largest(memory_bytes)
        lines.append(_Line(knobs, low, high, tokens_of, length, members.memory, memory_ends_it=high < widest))
    if not lines:
        raise UsageError(
            f"memory_bytes is {memory_bytes:.4g}, but the smallest member needs {smallest:.4g} with a vocabulary of "
            f"{vocab_size:,} and a context of {context:,}: give more memory, or a smaller vocab_size or context"
        )
    return _solve(law, lines, level)


def choices(
    law: Law,
    experts: Sequence[int] | None = None,
    granularity: Sequence[int] | None = None,
    shared: Sequence[int] | None = None,
) -> list[tuple[int, int, int]]:
    """Every (E, g, s) of the given values that is a model; None stands for the paper's values in the law's domain."""
    given = {"experts": experts, "granularity": granularity, "shared": shared}
    values = [known_values(law, knob) if some is None else tuple(some) for knob, some in given.items()]
    found = {DENSE if e == 1 else (e, g, s) for e, g, s in product(*values) if e == 1 or not s or g % 2 == 0}
    if not found:
        raise UsageError(
            f"no model has experts {values[0]}, granularity {values[1]} and shared {values[2]}: "
            "a shared expert needs an even granularity"
        )
    return sorted(found)


def known_values(law: Law, knob: str) -> tuple[int, ...]:
    """The paper's values of a knob inside the law's domain; one value for a knob of which the law knows nothing.

    That one is the domain's own where it has only one, else what the published family has.
    """
    low, high = law.domain.get(knob, (0.0, np.inf))
    form = FORMS[law.form]
    if low == high:
        return (round(low),)
    if knob in form.columns:
        return tuple(value for value in KNOBS[knob] if low <= value <= high) or (round(low),)
    if knob == "experts" and not form.columns:
        return (1,)  # a law that knows no knob at all is one of dense models
    return (PUBLISHED[knob],)


def _positive(name: str, value: float | None) -> float:
    if value is None or not 0 < value < np.inf:
        raise UsageError(f"{name} is {value}, but must be a positive number")
    return value


def _spending(members: Family, budget: float) -> Callable[[Array], Array]:
    """D of N where 6 N_act D, the embedding counted, uses up `budget` (in 6e18 FLOPs)."""
    return lambda n: budget / members.active(n)


def _always(tokens: float) -> Callable[[Array], Array]:
    return lambda n: np.full_like(n, tokens)


class _Models(NamedTuple):
    """Models that an interval covers, one a place."""

    experts: Array
    n_active: Array
    tokens: Array
    loss: Array


def _solve(law: Law, lines: Sequence[_Line], level: float) -> Optimum:
    """The least loss on every line. An interval covers the optima of the law's samples, or without samples all models
    whose loss is within the fit's RMSE of the least."""
    if not 0 < level < 1:
        raise UsageError(f"level is {level}, but must lie between 0 and 1")
    least = [_least(law, law.theta[None], line) for line in lines]
    losses = np.array([models.loss[0] for models in least])
    first = int(losses.argmin())
    shares: list[float | None] = [None] * len(lines)
    if law.samples is None:
        ends, interval = (0.0, 1.0), f"all within the fit's RMSE ({law.rmse:.3g} nats) of the least loss"
        # The least itself belongs to them even where the RMSE is smaller than the steps of the search for the others.
        covered = [_joined([_near(law, line, own.loss[0]), own]) for line, own in zip(lines, least, strict=True)]
        overall = _joined([*(_near(law, line, losses[first]) for line in lines), least[first]])
    else:
        ends, interval = ((1 - level) / 2, (1 + level) / 2), f"{level:.0%} of {len(law.samples)} bootstrap samples"
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
    """The model of least loss for each row of parameters: the range of ln N shrinks to the neighbours of the best of
    STEPS places (G) again and again, as the loss along a line has one valley."""
    form = FORMS[law.form]
    whole_R1P = form.full(theta_RP)[:, None, :]

    def losses(log_n_RG: Array) -> Array:
        parts = terms(form, whole_R1P, line.points(np.exp(log_n_RG)))
        result: Array = parts.size + parts.data + whole_R1P[..., INDEX["c"]]
        return result

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
    """The models on a line whose loss is within the RMSE of `least`; as their loss, `least` -/+ the RMSE."""
    n = np.geomspace(line.low, line.high, 4001)
    n = n[law.loss(line.points(n)) <= least + law.rmse]
    loss = np.array([least - law.rmse, least + law.rmse])
    return _Models(np.full_like(n, line.knobs[0]), n, line.tokens(n), loss)


def _ends(law: Law, line: _Line, best: _Models) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What binds at the optimum of a line, and what is doubtful about it."""
    n = best.n_active
    warnings = law.outside(line.points(n))
    binding = [line.length]
    at_low, at_high = np.log(n[0] / line.low) < AT_END, np.log(line.high / n[0]) < AT_END
    if at_high and line.memory_ends_it:
        binding.append("memory")
    elif at_low or at_high:
        warnings.append(f"the loss is least at the end of the search, {n[0]:.3g}B active parameters")
    return tuple(binding), tuple(warnings)
