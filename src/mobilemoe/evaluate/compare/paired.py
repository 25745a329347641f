"""Compares two models over the same examples: how much better one is, and how certain that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilemoe.errors import DataError
from mobilemoe.evaluate.results.results import Results
from mobilemoe.evaluate.results.rows import is_number, read_rows

Array = NDArray[np.float64]
Examples = dict[str, dict[str, float]]  # by benchmark, by id: the score, or 1 and 0 for right and wrong

RESAMPLES = 10_000
CONFIDENCE = 0.95
_DRAWN = 2**20  # counts that are drawn together


@dataclass(frozen=True)
class Difference:
    """A's mean minus B's over the `examples` that both have answered; `only_a` and `only_b` are examples of one alone.

    low, high: the 95% interval. share: the two-sided share of resamples in which the better model is not better, at
    least 2 / (resamples + 1). wins, losses: examples in which A scores higher, or lower.
    """

    examples: int
    only_a: int
    only_b: int
    a: float
    b: float
    low: float
    high: float
    share: float
    wins: int
    losses: int

    @property
    def difference(self) -> float:
        return self.a - self.b

    def as_json(self) -> dict[str, Any]:
        return {"difference": self.difference, **vars(self)}


@dataclass(frozen=True)
class Average:
    """The unweighted mean of the differences of several benchmarks, whatever their metrics."""

    benchmarks: tuple[str, ...]
    difference: float
    low: float
    high: float
    share: float


@dataclass(frozen=True)
class Comparison:
    """Differences by benchmark; `left_out` says why others have none. `average` is None unless it was asked for."""

    differences: dict[str, Difference]
    left_out: dict[str, str]
    average: Average | None

    def as_json(self) -> dict[str, Any]:
        return {
            "differences": {name: each.as_json() for name, each in self.differences.items()},
            "left_out": self.left_out,
        }


def read_examples(path: Path | str) -> Examples:
    """The scores in a JSONL of {"benchmark", "id", "correct"}. DataError for other lines and for a repeated id."""
    examples: Examples = {}
    for place, entry in read_rows(Path(path)):
        benchmark, key, score = (entry.get(name) for name in ("benchmark", "id", "correct"))
        if not (isinstance(benchmark, str) and isinstance(key, str | int) and is_number(score)):
            raise DataError(f'{place}, is no scored example: {{"benchmark": text, "id": text, "correct": number}}')
        scores = examples.setdefault(benchmark, {})
        if str(key) in scores:
            raise DataError(f"{place}: {benchmark} has the example {key} twice")
        scores[str(key)] = float(score)
    return examples


def unlike(a: Results, b: Results) -> dict[str, str]:
    """The benchmarks of two results that must not be compared, each with the reason."""
    reasons = {}
    for name in sorted(a.results.keys() | b.results.keys()):
        if reason := _unlike(name, a, b):
            reasons[name] = reason
    return reasons


def _unlike(name: str, a: Results, b: Results) -> str:
    for one in (a, b):
        if name not in one.results:
            return f"{one.model['name']} has no score: {one.missing.get(name, 'it was not asked for')}"
    # With equal n the examples are the same, whether a call or a suite limited them.
    alike = {"main_metric": "main metrics", "shots": "shots", "version": "task versions", "n": "numbers of examples"}
    for field, what in alike.items():
        ours, theirs = a.results[name][field], b.results[name][field]
        if ours != theirs:
            return f"the {what} differ: {ours} and {theirs}"
    return ""


def paired(
    a: Examples,
    b: Examples,
    *,
    left_out: Mapping[str, str] | None = None,
    average: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """A's scores minus B's with paired-bootstrap intervals, for each benchmark that both have.

    Examples are matched by id and drawn with replacement, `resamples` times. The percentile intervals are too narrow
    for fewer than about 30 examples. `left_out` names benchmarks that must not be compared, and why (`unlike`).
    `average` adds the mean over the benchmarks, which mixes metrics where they differ.
    """
    rng = np.random.default_rng(seed)
    differences, drawn = {}, []
    reasons = dict(left_out or {})
    for name in sorted(a.keys() | b.keys()):
        if name in reasons:
            continue
        ours, theirs = a.get(name, {}), b.get(name, {})
        shared = [key for key in ours if key in theirs]
        if not shared:
            reasons[name] = "no example was scored by both"
            continue
        scores = np.array([(ours[key], theirs[key]) for key in shared])
        gains = scores[:, 0] - scores[:, 1]
        means = _resample(gains, resamples, rng)
        differences[name] = Difference(
            examples=len(shared),
            only_a=len(ours) - len(shared),
            only_b=len(theirs) - len(shared),
            a=float(scores[:, 0].mean()),
            b=float(scores[:, 1].mean()),
            **_spread(means),
            wins=int((gains > 0).sum()),
            losses=int((gains < 0).sum()),
        )
        drawn.append(means)
    mean = None
    if average and drawn:
        difference = float(np.mean([each.difference for each in differences.values()]))
        mean = Average(tuple(differences), difference, **_spread(np.mean(drawn, axis=0)))
    return Comparison(differences, reasons, mean)


def _resample(gains: Array, resamples: int, rng: np.random.Generator) -> Array:
    """Means of `gains` [n] drawn n times with replacement, for each resample.

    A mean needs only how often each distinct value is drawn, and there are few: -1, 0 and 1 for most metrics.
    """
    values, counts = np.unique(gains, return_counts=True)
    n, together = len(gains), max(1, _DRAWN // len(values))
    sizes = [min(together, resamples - first) for first in range(0, resamples, together)]
    return np.concatenate([rng.multinomial(n, counts / n, size=size) @ values / n for size in sizes])


def _spread(means: Array) -> dict[str, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    # A resample without any difference speaks for neither. One is added to both counts, for the data themselves.
    beyond = min(int((means <= 1e-12).sum()), int((means >= -1e-12).sum()))
    return {"low": float(low), "high": float(high), "share": min(1.0, 2 * (beyond + 1) / (len(means) + 1))}
