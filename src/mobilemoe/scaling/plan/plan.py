"""`plan`: ranks the best architectures for a device's limits and a training budget, and states what is unknown.

A law depends on N_act, D, E, g and s, but not on depth, heads, vocabulary or bits. Therefore depth and heads only
break ties of predicted loss (`TOLERANCE`), vocabularies and tying are ranked separately, and bits add a stated prior.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mobilemoe.errors import UsageError
from mobilemoe.profile.device import Device
from mobilemoe.scaling.law.law import Law
from mobilemoe.scaling.law.published import published
from mobilemoe.scaling.plan.candidates import TOLERANCE, Array, Candidate, Constraints, Table, groups, tabulate
from mobilemoe.scaling.plan.explain import Relief, compare, notes, relaxations, reliefs
from mobilemoe.scaling.plan.space import Space, config_of

DEFAULT_LAW = "paper-joint"
LEAST_TOKENS = 1e6  # where no law says anything of fewer, and losses would be printed in hundreds of digits
LEVEL = 0.9  # probability of the intervals of the losses


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The result of `plan`. `candidates` are ranked, the best first, for each vocabulary and tying in turn.

    reliefs: the effect on the first of relaxing each limit by 10%. runner_up: why the second lost. infeasible: empty,
    or one sentence for each limit with the least by which it must be relaxed. table, losses: all models considered.
    """

    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]
    reliefs: tuple[Relief, ...]
    runner_up: str
    infeasible: tuple[str, ...]
    constraints: Constraints
    law: Law
    device: Device | None
    table: Table
    losses: Array
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON values for `mobilemoe plan --json`, without the table."""
        return {
            "candidates": [candidate.as_json() for candidate in self.candidates],
            "notes": list(self.notes),
            "sensitivity": [relief._asdict() for relief in self.reliefs],
            "runner_up": self.runner_up,
            "infeasible": list(self.infeasible),
            "constraints": asdict(self.constraints),
            "law": self.law.source,
            "interval": self.law.interval_kind,
            "device": None if self.device is None else self.device.name,
            "considered": len(self.table),
            "seconds": self.seconds,
        }


def plan(
    constraints: Constraints,
    *,
    law: Law | None = None,
    device: Device | None = None,
    space: Space | None = None,
    top: int = 10,
) -> Plan:
    """Ranks the architectures of `space` that keep to `constraints` by the loss of `law` (default: paper-joint).

    There is one candidate for each E, g, s and number of bits: among those within TOLERANCE of the least loss, the one
    nearest to the family's depth and heads. `top` of them are given. UsageError for a limit on speed without a device,
    and for a budget of next to no tokens.
    """
    started = time.perf_counter()
    law, space = law or published(DEFAULT_LAW), space or Space()
    if device is None and (constraints.decode or constraints.ttft):
        raise UsageError("a limit on decode or ttft needs a device: say which one, or measure this machine")
    if top < 1:
        raise UsageError(f"top is {top}, but must be at least 1")
    known = space.known_to(law)
    table = tabulate(known, law, device, constraints)
    if len(table) and (most := float(table.tokens(constraints).max())) < LEAST_TOKENS:
        raise UsageError(
            f"there are {most:.3g} tokens to train on at most, but a plan needs {LEAST_TOKENS:,.0f}: raise "
            "--train-flops (6 for each active parameter and token) or --tokens"
        )
    losses = law.loss(table.points(constraints))
    ranked: list[list[Candidate]] = []
    for tied in known.tied:
        for vocabulary in known.vocabularies:
            apart = table.allowed(constraints) & (table.vocab_size == vocabulary) & (table.tied == tied)
            if apart.any():
                ranked.append(_rank(table.take(apart), losses[apart], constraints, law))
    candidates = [candidate for apart in ranked for candidate in apart[:top]]
    first = ranked[0] if ranked else []
    dense = next((candidate for candidate in first if candidate.experts == 1), None)
    return Plan(
        candidates=tuple(candidates),
        notes=tuple(notes(known, law, device, constraints, candidates, dense)),
        reliefs=tuple(reliefs(table.take(table.comparable(first[0].config)), law, constraints)) if first else (),
        runner_up=compare(first[0], first[1]) if len(first) > 1 else "",
        infeasible=() if candidates else tuple(relaxations(table, constraints)),
        constraints=constraints,
        law=law,
        device=device,
        table=table,
        losses=losses,
        seconds=time.perf_counter() - started,
    )


def _rank(table: Table, losses: Array, constraints: Constraints, law: Law) -> list[Candidate]:
    """The best candidate of each E, g, s and bits, the least loss first."""
    scores = losses + table.prior
    best = []
    for places in groups(table):
        equal = places[scores[places] <= scores[places].min() + TOLERANCE]
        best.append(equal[np.lexsort((scores[equal], table.departure[equal]))[0]])
    chosen = np.array(sorted(best, key=lambda place: scores[place]))
    rows = table.take(chosen)
    points, tokens = rows.points(constraints), rows.tokens(constraints)
    low, high = law.interval(points, LEVEL)
    return [
        Candidate(
            config=config_of(rows.shapes[rows.block[row]], int(rows.place[row]), constraints.context),
            experts=int(rows.experts[row]),
            granularity=int(rows.granularity[row]),
            shared=int(rows.shared[row]),
            weight_bits=int(rows.weight_bits[row]),
            kv_bits=int(rows.kv_bits[row]),
            loss=float(losses[chosen[row]]),
            low=float(low[row]),
            high=float(high[row]),
            prior=float(rows.prior[row]),
            weights=float(rows.weights[row]),
            kv=float(rows.kv[row]),
            flops=float(rows.flops[row]),
            decode=_or_none(rows.decode[row]),
            ttft=_or_none(rows.ttft[row]),
            n_active=float(rows.n_active[row]),
            n_total=float(rows.n_total[row]),
            tokens=float(tokens[row]),
            departure=float(rows.departure[row]),
            outside=tuple(law.outside(points.at(row))),
        )
        for row in range(len(rows))
    ]


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
