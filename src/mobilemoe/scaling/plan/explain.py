"""Explains a plan: the cost of each limit, why the runner-up lost, why nothing fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from mobilemoe.profile.device import Device
from mobilemoe.scaling.law.law import Law
from mobilemoe.scaling.plan.candidates import Array, Candidate, Table
from mobilemoe.scaling.plan.choice import Scores, digits, law_error
from mobilemoe.scaling.plan.limits import DEFAULT_TOKENS, LIMITS, Constraints, given

RELAXED = 0.1  # by how much a limit is relaxed to see the effect
TELLING = 0.01  # smaller differences are not mentioned


class Relief(NamedTuple):
    """The effect of relaxing one limit by 10%: nats by which the least score falls (below 0: it rises)."""

    limit: str
    relaxed_to: float
    buys: float


def amount(limit: str, value: float, beside: float = 0) -> str:
    """The value of a limit in the usual units; beside a larger value, in the units of that."""
    if limit in ("memory", "max_memory"):
        return f"{value / 1e9:.2f} GB" if max(value, beside) >= 1e9 else f"{value / 1e6:.0f} MB"
    if limit == "decode":
        return f"{value:.3g} tok/s"
    if limit == "ttft":
        return f"{value:.2f} s"
    if limit == "flops":
        return f"{value / 1e9:.3g} GFLOPs a token"
    return f"{value / 1e9:.4g} B tokens" if limit == "tokens" else f"{value:.3g} training FLOPs"


def memory_of(device: Device | None) -> str:
    """What a plan's memory is of: the process on the device where that was measured, or weights and KV cache alone."""
    return "weights + KV" if device is None or device.process_weights is None else f"process on {device.name}"


def reliefs(table: Table, law: Law, constraints: Constraints) -> Iterator[Relief]:
    """Relaxes each limit and the training budget by 10% in turn.

    The models of `table` must be comparable, and one of them must keep to all limits.
    """
    scores = Scores.of(table, law, constraints).exact
    now = scores[table.allowed(constraints)].min()
    for name in given(constraints):
        more = getattr(constraints, name) * (1 + RELAXED if LIMITS[name].at_most else 1 / (1 + RELAXED))
        relaxed: dict[str, Any] = {name: more}
        wider = table.under(more) if name == "max_memory" else table
        then = scores[wider.allowed(replace(constraints, **relaxed))].min()
        yield Relief(name, more, float(now - then))
    name = "tokens" if constraints.train_flops is None else "train_flops"
    more = (getattr(constraints, name) or DEFAULT_TOKENS) * (1 + RELAXED)
    budget: dict[str, Any] = {name: more}
    longer = Scores.of(table, law, replace(constraints, **budget)).exact
    yield Relief(name, more, float(now - longer[table.allowed(constraints)].min()))


def relaxations(table: Table, constraints: Constraints) -> Iterator[str]:
    """A sentence for each limit: by how much it must be relaxed if all the others are kept."""
    limits = given(constraints)
    helpless = []
    for name in limits:
        limit, bound = LIMITS[name], getattr(constraints, name)
        if name == "max_memory":
            values = _least_max_memory(table, constraints)
        else:
            values = getattr(table, limit.column)[table.allowed(constraints, without=name)]
        others = " and ".join(_kept(other, getattr(constraints, other)) for other in limits if other != name)
        if not len(values):
            helpless.append(name)
            continue
        best = values.min() if limit.at_most else values.max()
        what, verb = _EXTREME[name]
        that = f" that {others}" if others else " of all"
        missing = abs(best - bound)
        more = "more" if limit.at_most else "less"
        of = _measure(table, name)
        short = amount(name, missing, best)
        yield f"the {what}{that} {verb} {amount(name, best)}{of}, {short} {more} than {_option(name)}"
    if helpless:
        names = " or ".join(map(_option, helpless))
        yield f"relaxing {names} alone does not help"


def _option(limit: str) -> str:
    return f"--{limit.replace('_', '-')}"


def _least_max_memory(table: Table, constraints: Constraints) -> Array:
    """The least max_memory with which a model keeps to all other limits, in an array; an empty one if none helps."""

    def keeps(bound: float) -> bool:
        return bool(table.under(bound).allowed(replace(constraints, max_memory=bound)).any())

    low, high = constraints.max_memory or 0.0, float(table.memory.max())
    if not keeps(high):
        return np.empty(0)
    while high - low > TELLING / 10 * low:
        middle = (low + high) / 2
        low, high = (low, middle) if keeps(middle) else (middle, high)
    return np.array([high])


def _measure(table: Table, name: str) -> str:
    """What a limit is held against, where it is not the plain prediction."""
    if name in ("memory", "max_memory"):
        return "" if np.array_equal(table.memory, table.weights + table.kv) else " of process memory"
    return (
        ""
        if np.array_equal(getattr(table, LIMITS[name].column), getattr(table, name), equal_nan=True)
        else " with its margin"
    )


_EXTREME = {
    "memory": ("smallest", "needs"),
    "max_memory": ("one with the least memory", "runs in"),
    "decode": ("fastest", "decodes at"),
    "ttft": ("quickest", "takes"),
    "flops": ("leanest", "takes"),
}


def _kept(name: str, bound: float) -> str:
    verbs = {
        "memory": "fits in",
        "max_memory": "runs in",
        "decode": "decodes at",
        "ttft": "starts within",
        "flops": "takes at most",
    }
    return f"{verbs[name]} {amount(name, bound)}"


def title(candidate: Candidate) -> str:
    """E, g and the shared expert in words."""
    c = candidate
    if c.experts == 1:
        return "dense"
    return f"E {c.experts}, g {c.granularity}, {'shared' if c.shared else 'no shared'}"


def compare(winner: Candidate, other: Candidate, law: Law) -> str:
    """Why `other` lost, and in what it is better and worse."""
    better: list[str] = []
    worse: list[str] = []
    for name, words, less_is_better in _COMPARED:
        mine, its = getattr(winner, name), getattr(other, name)
        if mine is None or abs(its / mine - 1) < TELLING:
            continue
        text = f"{words} {its / mine - 1:+.0%}"
        (better if (its < mine) == less_is_better else worse).append(text)
    gap, places = other.score - winner.score, digits(law_error(law)[0])
    text = f"{title(other)} lost to {title(winner)} by {gap:.{places}f} nats"
    if gap < 0.5 * 10**-places:
        text = f"{title(other)} scores as well as {title(winner)}, which is cheaper in the tightest limit"
    elif other.prior != winner.prior:
        parts = other.loss - winner.loss, other.prior - winner.prior
        text += f" ({parts[0]:+.{places}f} by the law, {parts[1]:+.{places}f} by the priors)"
    if better or worse:
        text += f"; better: {', '.join(better) or 'nothing'}; worse: {', '.join(worse) or 'nothing else'}"
    else:
        text += "; all else is equal to 1%"
    if other.equivalent:
        text += "; the law cannot tell the two apart"
    return text


_COMPARED = (
    ("memory", "memory", True),
    ("weights", "weights", True),
    ("kv", "KV cache", True),
    ("flops", "FLOPs a token", True),
    ("decode", "decode speed", False),
    ("ttft", "time to the first token", True),
    ("n_total", "parameters in all", True),
    ("tokens", "tokens to train on", True),
)
