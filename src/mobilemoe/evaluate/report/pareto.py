"""Results side by side: which scores may be averaged, what the models cost, and which lie on the Pareto front."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from mobilemoe.errors import UsageError
from mobilemoe.evaluate.compare.paired import unlike
from mobilemoe.evaluate.results.results import Results
from mobilemoe.evaluate.tasks.suites import SUITES
from mobilemoe.paper import Mark

ACCURACY = "accuracy"
_LONGEST = 200  # characters of a name that fit beside a picture
FOURTEEN = frozenset(benchmark.name for benchmark in SUITES["foundation"])


@dataclass(frozen=True)
class Cost:
    """A cost that accuracy is drawn against: that of a result (None: not known), and of a published mark, in the units
    of `label`.
    """

    name: str
    label: str
    of: Callable[[Results], float | None]
    of_mark: Callable[[Mark], float] | None


def _scaled(value: Any, factor: float) -> float | None:
    return None if value is None else float(value) * factor


COSTS = (
    Cost(
        "flops",
        "GFLOPs per decoded token",
        lambda results: _scaled(results.model["flops_per_token"], 1e-9),
        lambda mark: mark.flops_per_token / 1e9,
    ),
    Cost(
        "bytes",
        "INT4 file (MB)",
        lambda results: _scaled(results.model["int4_bytes"], 1e-6),
        lambda mark: mark.int4_bytes / 1e6,
    ),
    Cost("ms", "measured ms per token", lambda results: _scaled(results.speed.get("ms_per_token"), 1), None),
)


@dataclass(frozen=True)
class Score:
    """A fraction and its standard error, if that is known."""

    value: float
    stderr: float | None


@dataclass(frozen=True)
class Average:
    """Mean scores over `benchmarks`, by label; `metric` names their metric, or says that several are mixed."""

    benchmarks: tuple[str, ...]
    metric: str
    scores: dict[str, Score]


def main_score(results: Results, benchmark: str) -> Score:
    """The score in the benchmark's main metric."""
    row = results.results[benchmark]
    metric = row["main_metric"]
    stderr = row.get(f"{metric}_stderr")
    return Score(float(row[metric]), None if stderr is None else float(stderr))


def in_common(every: Mapping[str, Results]) -> tuple[list[str], dict[str, str]]:
    """The benchmarks that all results have with the same settings, in the first result's order, and why others are left
    out.
    """
    first, *others = every.values()
    reasons: dict[str, str] = {}
    for other in others:
        reasons = unlike(first, other) | reasons
    return [name for name in first.results if name not in reasons], reasons


def average(every: Mapping[str, Results], *, mixed: bool = False) -> tuple[Average | None, dict[str, str]]:
    """Means over the benchmarks in common, and why others are left out; None where there is no such benchmark.

    Different metrics are averaged only if `mixed`; else only the benchmarks with the most common metric count. acc and
    acc_norm are both accuracies. The standard error is that of the items, for these benchmarks alone.
    """
    names, reasons = in_common(every)
    first = next(iter(every.values()))
    metrics = {name: _kind(first.results[name]["main_metric"]) for name in names}
    if not names:
        return None, reasons
    if not mixed:
        # Accuracies before others where as many have either.
        counts = Counter(metrics.values())
        chosen = max(counts, key=lambda metric: (counts[metric], metric == ACCURACY))
        for name in names:
            if metrics[name] != chosen:
                reasons[name] = f"{metrics[name]} is not averaged with {chosen} unless --average asks for it"
        names = [name for name in names if metrics[name] == chosen]
    kinds = sorted({metrics[name] for name in names})
    scores = {label: _mean([main_score(results, name) for name in names]) for label, results in every.items()}
    return Average(tuple(names), " and ".join(kinds), scores), reasons


def _kind(metric: str) -> str:
    """ "exact_match" of "exact_match,strict-match", whose second part is how the answer is cut out."""
    plain = metric.partition(",")[0]
    return ACCURACY if plain in ("acc", "acc_norm") else plain


def _mean(scores: Sequence[Score]) -> Score:
    known = [score.stderr for score in scores if score.stderr is not None]
    stderr = sqrt(sum(error**2 for error in known)) / len(scores) if len(known) == len(scores) else None
    return Score(sum(score.value for score in scores) / len(scores), stderr)


def without_marks(mean: Average | None) -> str:
    """Why the published averages over the 14 benchmarks cannot be compared with this one; empty if they can."""
    if mean is not None and set(mean.benchmarks) == FOURTEEN:
        return ""
    count = 0 if mean is None else len(FOURTEEN.intersection(mean.benchmarks))
    return (
        "The paper's averages are left off: they are over its 14 benchmarks, accuracies and others mixed (--average), "
        f"and this one is over {count} of them."
    )


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The points (cost, score), by label, that no other point dominates, the cheapest first.

    A point is dominated if another costs no more and scores no less, and is better in one of the two.
    """

    def beaten(label: str) -> bool:
        cost, score = points[label]
        return any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points.values())

    return sorted((label for label in points if not beaten(label)), key=lambda label: points[label])


def fronts(every: Mapping[str, Results], mean: Average) -> dict[str, list[str]]:
    """The front for each cost that at least one result has."""
    found = {}
    for cost in COSTS:
        costs = {label: cost.of(results) for label, results in every.items()}
        points = {label: (value, mean.scores[label].value) for label, value in costs.items() if value is not None}
        if points:
            found[cost.name] = front(points)
    return found


def labels(names: Sequence[tuple[str, Results]]) -> dict[str, Results]:
    """Results, which come with the names of their files, by the model's name; with the file's name too where a model
    comes twice.
    """
    met = Counter(results.model["name"] for _, results in names)
    labelled = {}
    for file, results in names:
        name = str(results.model["name"])
        name = name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..."
        label = name if met[name] == 1 else f"{name} ({file})"
        if label in labelled:
            raise UsageError(f"{file} is given twice")
        labelled[label] = results
    return labelled
