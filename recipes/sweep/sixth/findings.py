"""The paper's findings on E, g and the shared expert, as this sweep's table shows them.

    python recipes/sweep/sixth/findings.py [RUNS.csv]

Registered before any run (grid.toml). All figures are in nats per token.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

TABLE = Path(__file__).parent / "runs.csv"
SEEDS = (3, 4, 5, 6)
BASE = "e8g8s0"
AGAINST_BASE = ("dense", "e2g8s0", "e4g8s0", "e16g8s0", "e32g8s0", "e8g1s0", "e8g2s0", "e8g4s0", "e8g16s0", "e8g8s1")
PAIRS = ((BASE, *AGAINST_BASE), ("e16g8s0", "e16g8s1"))  # a reference and what is compared with it


class Difference(NamedTuple):
    """A model less its reference: the mean over the seeds that both finished, and half of its 95% interval."""

    mean: float
    half: float
    seeds: int

    @property
    def shown(self) -> bool:
        return abs(self.mean) > self.half


def losses(path: Path = TABLE) -> dict[tuple[str, int], float]:
    """The loss by model and seed."""
    with path.open(newline="") as handle:
        loss = {row["id"]: float(row["loss"]) for row in csv.DictReader(handle)}
    models = {model for pair in PAIRS for model in pair}
    names = {(model, seed): f"d192x5-{model}-t49152000-seed{seed}" for model in models for seed in SEEDS}
    return {place: loss[name] for place, name in names.items() if name in loss}


def differences(path: Path = TABLE) -> dict[str, Difference]:
    """Each model less its reference of the same seed; their scatter over the seeds is pooled over all models."""
    loss = losses(path)
    gaps = {}
    for base, *models in PAIRS:
        for model in models:
            both = [seed for seed in SEEDS if (model, seed) in loss and (base, seed) in loss]
            gaps[model] = np.array([loss[model, seed] - loss[base, seed] for seed in both])
    gaps = {model: values for model, values in gaps.items() if len(values)}
    freedom = sum(len(values) - 1 for values in gaps.values())
    spread = (sum(float(((values - values.mean()) ** 2).sum()) for values in gaps.values()) / freedom) ** 0.5
    quantile = float(stats.t.ppf(0.975, freedom))
    return {
        model: Difference(float(values.mean()), quantile * spread / len(values) ** 0.5, len(values))
        for model, values in gaps.items()
    }


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else TABLE
    for model, found in differences(path).items():
        base = next(base for base, *models in PAIRS if model in models)
        verdict = "shown" if found.shown else "not shown"
        print(f"{model:8} less {base:8} {found.mean:+.4f} +- {found.half:.4f} ({found.seeds} seeds, {verdict})")


if __name__ == "__main__":
    main()
