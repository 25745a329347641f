"""The unit of a worker's work: one run, or all runs of one trunk, which is trained once for all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mobilemoe import accounting
from mobilemoe.sweep.runs import Run


@dataclass(frozen=True)
class Unit:
    """Runs of one trunk, the shortest first; `id` is the trunk's."""

    id: str
    runs: tuple[Run, ...]

    def own_tokens(self) -> dict[str, int]:
        """The tokens that each run adds to those already trained for the runs before it, by id."""
        tokens, trunk = {}, 0
        for run in self.runs:
            tokens[run.id] = (run.recipe.train.steps - min(trunk, run.shared_steps)) * run.batch_tokens
            trunk = max(trunk, run.shared_steps)
        return tokens


def units(runs: Iterable[Run]) -> list[Unit]:
    """The units of these runs, in the order of their first runs."""
    by_trunk: dict[str, list[Run]] = {}
    for run in runs:
        by_trunk.setdefault(run.trunk, []).append(run)
    return [Unit(trunk, tuple(sorted(alike, key=lambda run: run.tokens))) for trunk, alike in by_trunk.items()]


def own_costs(runs: list[Run]) -> dict[str, tuple[int, int]]:
    """The tokens and FLOPs that each of these runs adds, by id; their sum is what training all of them takes."""
    costs = {}
    for unit in units(runs):
        tokens = unit.own_tokens()
        for run in unit.runs:
            each = accounting.training_flops_per_token(run.config, run.recipe.train.sequence_length)
            costs[run.id] = (tokens[run.id], tokens[run.id] * each)
    return costs
