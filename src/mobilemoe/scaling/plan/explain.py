"""Explains a plan: assumptions, the cost of each limit, why the runner-up lost, why nothing fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from mobilemoe.profile.device import Device
from mobilemoe.scaling.law.law import Law
from mobilemoe.scaling.plan.candidates import (
    DEFAULT_TOKENS,
    FINEST,
    FINEST_PRIOR,
    LIMITS,
    TOLERANCE,
    WEIGHT_BITS_PRIOR,
    Candidate,
    Constraints,
    Table,
)
from mobilemoe.scaling.plan.space import Space

RELAXED = 0.1  # by how much a limit is relaxed to see the effect
TELLING = 0.01  # smaller differences are not mentioned
UNUSUAL = 0.3  # smaller departures from the family's depth and heads (in doublings) are not mentioned


class Relief(NamedTuple):
    """The effect of relaxing one limit by 10%: nats by which the lowest loss falls (below 0: it rises)."""

    limit: str
    relaxed_to: float
    buys: float


def amount(limit: str, value: float, beside: float = 0) -> str:
    """The value of a limit in the usual units; beside a larger value, in the units of that."""
    if limit == "memory":
        return f"{value / 1e9:.2f} GB" if max(value, beside) >= 1e9 else f"{value / 1e6:.0f} MB"
    if limit == "decode":
        return f"{value:.3g} tok/s"
    if limit == "ttft":
        return f"{value:.2f} s"
    if limit == "flops":
        return f"{value / 1e9:.3g} GFLOPs a token"
    return f"{value / 1e9:.4g} B tokens" if limit == "tokens" else f"{value:.3g} training FLOPs"


def given(constraints: Constraints) -> list[str]:
    """The names of the limits that are set."""
    return [name for name in LIMITS if getattr(constraints, name) is not None]


def reliefs(table: Table, law: Law, constraints: Constraints) -> Iterator[Relief]:
    """Relaxes each limit and the training budget by 10% in turn.

    The models of `table` must be comparable, and one of them must keep to all limits.
    """
    now = _least_score(table, law, constraints)
    budget = "tokens" if constraints.train_flops is None else "train_flops"
    for name in [*given(constraints), budget]:
        value = getattr(constraints, name) or DEFAULT_TOKENS
        more = value / (1 + RELAXED) if name == "decode" else value * (1 + RELAXED)
        relaxed: dict[str, Any] = {name: more}
        then = _least_score(table, law, replace(constraints, **relaxed))
        yield Relief(name, more, now - then)


def _least_score(table: Table, law: Law, constraints: Constraints) -> float:
    table = table.take(table.allowed(constraints))
    return float(np.min(law.loss(table.points(constraints)) + table.prior))


def relaxations(table: Table, constraints: Constraints) -> Iterator[str]:
    """A sentence for each limit: by how much it must be relaxed if all the others are kept."""
    limits = given(constraints)
    helpless = []
    for name in limits:
        limit, bound = LIMITS[name], getattr(constraints, name)
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
        yield f"the {what}{that} {verb} {amount(name, best)}, {amount(name, missing, best)} {more} than --{name}"
    if helpless:
        names = " or ".join(f"--{name}" for name in helpless)
        yield f"relaxing {names} alone does not help"


_EXTREME = {
    "memory": ("smallest", "needs"),
    "decode": ("fastest", "decodes at"),
    "ttft": ("quickest", "takes"),
    "flops": ("leanest", "takes"),
}


def _kept(name: str, bound: float) -> str:
    verbs = {"memory": "fits in", "decode": "decodes at", "ttft": "starts within", "flops": "takes at most"}
    return f"{verbs[name]} {amount(name, bound)}"


def title(candidate: Candidate) -> str:
    """E, g and the shared expert in words."""
    c = candidate
    if c.experts == 1:
        return "dense"
    return f"E {c.experts}, g {c.granularity}, {'shared' if c.shared else 'no shared'}"


def compare(winner: Candidate, other: Candidate) -> str:
    """Why `other` lost, and in what it is better and worse."""
    better: list[str] = []
    worse: list[str] = []
    for name, words, less_is_better in _COMPARED:
        mine, its = getattr(winner, name), getattr(other, name)
        if mine is None or abs(its / mine - 1) < TELLING:
            continue
        text = f"{words} {its / mine - 1:+.0%}"
        (better if (its < mine) == less_is_better else worse).append(text)
    gap = other.score - winner.score
    text = f"{title(other)} lost to {title(winner)} by {gap:.4f} nats"
    if other.prior != winner.prior:
        text += f" ({other.loss - winner.loss:+.4f} by the law, {other.prior - winner.prior:+.4f} by the priors)"
    if better or worse:
        text += f"; better: {', '.join(better) or 'nothing'}; worse: {', '.join(worse) or 'nothing else'}"
    else:
        text += "; all else is equal to 1%"
    if abs(gap) < (winner.high - winner.low) / 2:
        text += "; the gap is smaller than the law's own interval"
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


def notes(
    space: Space,
    law: Law,
    device: Device | None,
    constraints: Constraints,
    candidates: Sequence[Candidate],
    dense: Candidate | None,
) -> Iterator[str]:
    """Everything that is assumed or unknown to the law; `dense` is the best model without experts."""
    if outside := sorted({sentence for candidate in candidates[:1] for sentence in candidate.outside}):
        yield f"OUTSIDE THE LAW'S DOMAIN, the first candidate: {'; '.join(outside)}"
    if any(candidate.outside for candidate in candidates[1:]):
        yield "OUTSIDE THE LAW'S DOMAIN too: every candidate marked with !"
    if dense is not None and dense is not candidates[0]:
        yield (
            f"the best dense model within the limits: {dense.config.hidden_size} x {dense.config.num_hidden_layers}, "
            f"loss {dense.loss:.4f}, {dense.loss - candidates[0].loss:+.4f} nats, {amount('memory', dense.memory)}"
        )
    yield f"law: {law.source}; the losses' interval is the {law.interval_kind}"
    if law.forecast_rmse is not None:
        yield f"the law predicted runs that its fit had not seen with an RMSE of {law.forecast_rmse:.4f} nats"
    if law.prior:
        yield f"prior in the law: {law.prior}"
    if law.counts_embedding is None:
        yield "whether the law's N counts the embedding is unknown: N_act counts it here, so that F_inf = 2 N_act"
    if constraints.train_flops is None and constraints.tokens is None:
        yield f"no training budget was given: {DEFAULT_TOKENS / 1e9:.0f} B tokens are assumed"
    yield (
        f"depth, heads and KV heads are unknown to the law: among models of equal loss ({TOLERANCE} nats) the nearest "
        f"to the family's habits is taken (width / layers 40); width / layers may be {min(space.ratios):g} to "
        f"{max(space.ratios):g}"
    )
    if candidates and candidates[0].departure > UNUSUAL:
        c = candidates[0].config
        yield (
            f"the first candidate's depth or heads are not the family's ({c.hidden_size} / {c.num_hidden_layers} = "
            f"{c.hidden_size / c.num_hidden_layers:.0f}; {c.num_attention_heads} heads of {c.head_dim}, "
            f"{c.num_key_value_heads} for keys and values): the limits made them so, and the law does not know at what "
            "cost"
        )
    if len(space.vocabularies) > 1 or len(space.tied) > 1:
        yield (
            "losses a token of different vocabularies cannot be compared, and the law does not know tying: each is "
            "ranked apart, in the order given"
        )
    cost = WEIGHT_BITS_PRIOR[4]
    if len(space.weight_bits) > 1:
        yield f"prior: INT4 weights are ranked as {cost} nats worse than 8 or 16 bits (2.3 to 2.8 points of the paper)"
    elif space.weight_bits == (4,):
        yield f"losses are those before quantisation; INT4 after QAT costs some {cost} nats more (a prior)"
    if len(space.kv_bits) > 1:
        yield "prior: an int8 KV cache is taken to cost no loss, so that 16 bits only take memory"
    if FINEST in space.granularities:
        yield (
            f"prior: g = {FINEST} is ranked as {FINEST_PRIOR} nats worse: the paper finds ~50% more wall-clock for "
            "less than that"
        )
    yield (
        f"memory = the weights' file (scales and router included) + KV cache of {constraints.context:,} tokens; a "
        "process takes more (the paper's S: 1.23 GB on the S25 where this formula has 0.76)"
    )
    if device is not None:
        yield (
            f"device {device.name}: {device.source}; decode speed after {constraints.context:,} tokens, first token "
            f"after a prompt of {constraints.prompt:,}"
        )
        if space.weight_bits != (4,) or space.kv_bits != (8,):
            yield (
                "the device was measured with INT4 weights and its own KV cache: other weights take longer by their "
                "bytes in decoding, all else is taken to be the same"
            )
    if candidates and candidates[0].config.hidden_size == max(space.widths):
        yield "the first candidate is as wide as the space goes: the limits given do not keep the loss from falling"
