"""`plan`: chooses an architecture within a device's limits and a training budget, and states what is unknown.

A law depends on N_act, D, E, g and s, but not on depth, heads, vocabulary or bits, and it has an error. Every model
gets one score, which depends on no limit: the law's loss, stated priors, and a preference for the family's depth and
heads that never exceeds the law's error. The choice has the least score of all models within the limits, so that
relaxing a limit never worsens it. Vocabularies are compared by text, where the bytes of their tokens are known
(`vocabulary`); tying is ranked separately.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mobilemoe.errors import UsageError
from mobilemoe.profile.device import Device
from mobilemoe.scaling.law.law import Law
from mobilemoe.scaling.law.published import published
from mobilemoe.scaling.plan.candidates import Array, Candidate, Mask, Table, tabulate
from mobilemoe.scaling.plan.choice import Equivalent, Scores, ranked
from mobilemoe.scaling.plan.explain import Relief, compare, memory_of, relaxations, reliefs
from mobilemoe.scaling.plan.larger import Larger, weigh
from mobilemoe.scaling.plan.limits import Constraints
from mobilemoe.scaling.plan.notes import notes
from mobilemoe.scaling.plan.space import Space, config_of
from mobilemoe.scaling.plan.vocabulary import VocabularyBest, bits_per_byte, bytes_per_token

DEFAULT_LAW = "paper-joint"
LEAST_TOKENS = 1e6  # where no law says anything of fewer, and losses would be printed in hundreds of digits
LEVEL = 0.9  # probability of the intervals of the losses


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The result of `plan`. `candidates` are ranked, the best first, for each tying in turn (and each vocabulary,
    where these cannot be compared).

    vocabularies: the best of each, where several are compared. equivalent: the models that the law cannot tell from
    the best of the first ranking; None if nothing fits. reliefs: by how much the least score falls if a limit is
    relaxed by 10%. runner_up: why the second lost. larger: with max_memory, whether a model larger than memory pays.
    infeasible: empty, or one sentence for each limit with the least by which it must be relaxed. digits: decimals of a
    loss that the law's error warrants. table, losses: all models considered.
    """

    candidates: tuple[Candidate, ...]
    equivalent: Equivalent | None
    notes: tuple[str, ...]
    reliefs: tuple[Relief, ...]
    vocabularies: tuple[VocabularyBest, ...]
    runner_up: str
    larger: Larger | None
    infeasible: tuple[str, ...]
    constraints: Constraints
    law: Law
    device: Device | None
    digits: int
    table: Table
    losses: Array
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON values for `mobilemoe plan --json`, without the table."""
        return {
            "candidates": [candidate.as_json() for candidate in self.candidates],
            "equivalent": None if self.equivalent is None else asdict(self.equivalent),
            "notes": list(self.notes),
            "vocabularies": [best._asdict() for best in self.vocabularies],
            "sensitivity": [relief._asdict() for relief in self.reliefs],
            "runner_up": self.runner_up,
            "larger_than_memory": None if self.larger is None else _larger_values(self.larger),
            "infeasible": list(self.infeasible),
            "constraints": asdict(self.constraints),
            "law": self.law.source,
            "interval": self.law.interval_kind,
            "device": None if self.device is None else self.device.name,
            "speed_error": None if self.device is None else self.device.error,
            "memory_of": memory_of(self.device),
            "considered": len(self.table),
            "seconds": self.seconds,
        }


def _larger_values(larger: Larger) -> dict[str, Any]:
    both = {"fits": larger.fits, "larger": larger.larger}
    values = {name: None if candidate is None else candidate.as_json() for name, candidate in both.items()}
    return {"pays": larger.pays, "verdict": larger.verdict, **values}


def plan(
    constraints: Constraints,
    *,
    law: Law | None = None,
    device: Device | None = None,
    space: Space | None = None,
    top: int = 10,
) -> Plan:
    """Ranks the architectures of `space` that keep to `constraints` by the loss of `law` (default: paper-joint).

    There is one candidate for each E, g, s and number of bits; `top` of them are given. UsageError for a limit on speed
    without a device, for max_memory without a decode speed, for a budget of next to no tokens, and where nothing limits
    active parameters and the best model lies outside the law's domain.
    """
    started = time.perf_counter()
    law, space = law or published(DEFAULT_LAW), space or Space()
    if device is None and (constraints.decode or constraints.ttft):
        raise UsageError("a limit on `decode` or `ttft` needs a `device`: say which one, or measure this machine")
    if constraints.max_memory is not None and constraints.decode is None:
        raise UsageError(
            "`max_memory` needs a least speed to `decode`: without one, a model read from flash may be slow at will"
        )
    if top < 1:
        raise UsageError(f"top is {top}, but must be at least 1")
    known = space.known_to(law)
    table = tabulate(known, law, device, constraints)
    if len(table) and (most := float(table.tokens(constraints).max())) < LEAST_TOKENS:
        raise UsageError(
            f"there are {most:.3g} tokens to train on at most, but a plan needs {LEAST_TOKENS:,.0f}: raise "
            "--train-flops (6 for each active parameter and token) or --tokens"
        )
    scores = Scores.of(table, law, constraints)
    allowed = table.allowed(constraints)
    parts = [mask for mask in (apart & allowed for apart in _apart(table, known)) if mask.any()]
    if parts:
        _refuse_what_the_law_cannot_rank(table, scores, parts[0], law, constraints, known)
    lists = [_candidates(table, scores, mask, constraints, law) for mask in parts]
    candidates = [candidate for listed in lists for candidate in listed[:top]]
    first = lists[0] if lists else []
    return Plan(
        candidates=tuple(candidates),
        equivalent=_equivalent(table, scores, parts[0], law) if parts else None,
        notes=tuple(notes(known, law, device, constraints, candidates, _dense(first))),
        reliefs=tuple(reliefs(table.take(table.comparable(first[0].config)), law, constraints)) if first else (),
        vocabularies=tuple(_vocabularies(table, scores, parts[0], known)) if parts and table.by_text else (),
        larger=_larger(table, scores, parts[0], constraints, law) if parts and constraints.max_memory else None,
        runner_up=compare(first[0], first[1], law) if len(first) > 1 else "",
        infeasible=() if candidates else tuple(relaxations(table, constraints)),
        constraints=constraints,
        law=law,
        device=device,
        digits=scores.digits,
        table=table,
        losses=scores.losses,
        seconds=time.perf_counter() - started,
    )


def _apart(table: Table, space: Space) -> Iterator[Mask]:
    """The models of each tying and, unless these are compared by text, of each vocabulary: what cannot be compared."""
    for tied in space.tied:
        if table.by_text:
            yield np.asarray(table.tied == tied)
            continue
        for vocabulary in space.vocabularies:
            yield np.asarray((table.vocab_size == vocabulary) & (table.tied == tied))


def _refuse_what_the_law_cannot_rank(
    table: Table, scores: Scores, allowed: Mask, law: Law, constraints: Constraints, space: Space
) -> None:
    """UsageError if nothing charges for active parameters, and the least predicted loss is outside the law's domain."""
    if constraints.limit_active or len(space.experts) == 1:
        return
    least = int(np.argmin(np.where(allowed, scores.predicted, np.inf)))
    if outside := law.outside(table.points(constraints).at(least)):
        where = outside[0].partition(" of the")[0]
        raise UsageError(
            "a limit on memory alone, or none, cannot rank architectures, since active parameters are then free: the "
            f"law would choose E = {table.experts[least]:.0f} outside its domain ({where}); add --decode or --ttft "
            "with a --device, --flops or --train-flops"
        )


def _equivalent(table: Table, scores: Scores, allowed: Mask, law: Law) -> Equivalent:
    same = scores.equivalent(allowed)
    return Equivalent.of(table.take(same), scores.predicted[same], law)


def _larger(table: Table, scores: Scores, allowed: Mask, constraints: Constraints, law: Law) -> Larger:
    """The best that fits beside the best that does not."""
    fits, larger = (
        _candidates(table, scores, mask, constraints, law)[0] if mask.any() else None
        for mask in (allowed & (table.held == 1), allowed & (table.held < 1))
    )
    return weigh(fits, larger, scores.error, scores.digits)


def _vocabularies(table: Table, scores: Scores, allowed: Mask, space: Space) -> Iterator[VocabularyBest]:
    """The best of each vocabulary, where there are several, in the order given."""
    for size in space.vocabularies if len(space.vocabularies) > 1 else ():
        own = allowed & (table.vocab_size == size)
        if not own.any():
            continue
        best = int(np.flatnonzero(own)[scores.exact[own].argmin()])
        loss, held = float(scores.losses[best]), bytes_per_token(size)
        bits = bits_per_byte(loss, space.vocabularies[0])
        yield VocabularyBest(size, held, float(scores.rounded[best]), loss, bits, table.width[best])


def _dense(candidates: list[Candidate]) -> Candidate | None:
    return next((candidate for candidate in candidates if candidate.experts == 1), None)


def _candidates(table: Table, scores: Scores, allowed: Mask, constraints: Constraints, law: Law) -> list[Candidate]:
    """The best candidate of each E, g, s and bits, the best first."""
    chosen = np.array(ranked(table, scores, allowed, constraints))
    rows = table.take(chosen)
    points, tokens = rows.points(constraints), rows.tokens(constraints)
    low, high = law.interval(points, LEVEL)
    several, reference = table.by_text and np.ptp(table.vocab_size) > 0, int(table.vocab_size[0])
    preference, equivalent = rows.preference(scores.error), scores.equivalent(allowed)[chosen]
    found = []
    for row, place in enumerate(chosen):
        values: dict[str, Any] = {name: int(getattr(rows, name)[row]) for name in _DESIGN}
        values |= {name: _or_none(getattr(rows, name)[row]) for name in (*_COLUMNS, *_SPEEDS)}
        found.append(
            Candidate(
                config=config_of(
                    rows.shapes[rows.block[row]], int(rows.place[row]), math.ceil(constraints.context / rows.text[row])
                ),
                loss=float(scores.losses[place]),
                low=float(low[row]),
                high=float(high[row]),
                preference=float(preference[row]),
                score=float(scores.rounded[place]),
                bits_per_byte=bits_per_byte(float(scores.losses[place]), reference) if several else None,
                equivalent=bool(equivalent[row]),
                tokens=float(tokens[row]),
                outside=tuple(law.outside(points.at(row))),
                **values,
            )
        )
    return found


_DESIGN = ("experts", "granularity", "shared", "weight_bits", "kv_bits")
_COLUMNS = ("prior", "memory", "weights", "kv", "held", "flops", "n_active", "n_total", "departure")
_SPEEDS = ("decode", "decode_least", "ttft", "ttft_most")


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
