"""How often a 90% interval of `fit` holds the truth, on small noisy tables made from a known law.

    python benchmarks/interval_coverage.py [TRIALS [RESAMPLES]]

Each row is one design. `constants`: the coverage over all fitted constants, and that of the worst one. `inside`: the
loss in the middle of the runs; `beyond`: at 4 times the largest N and D. `failed`: resamples that did not converge.
Coverage from T trials has a standard error of sqrt(.09 / T).
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np

from mobilemoe.scaling import Law, Points, Runs, fit, published

LEVEL = 0.9


class Design(NamedTuple):
    """A table of runs: the law that makes it, its points, and the standard deviation of its noise in nats."""

    law: Law
    points: Points
    noise: float


def grid(sizes: list[float], tokens: list[float], experts: list[float]) -> Points:
    n, d, e = (axis.ravel() for axis in np.meshgrid(sizes, tokens, experts))
    return Points(n_active=n, tokens=d, experts=e)


def ribbon(runs: int) -> Points:
    """20 tokens for each parameter, within a factor of 1.5."""
    n = np.geomspace(0.05, 1.0, runs)
    return Points(n_active=n, tokens=20 * n * np.tile([1 / 1.5, 1, 1.5], runs)[:runs])


def designs() -> dict[str, Design]:
    chinchilla, paper = published("chinchilla"), published("paper-E")
    sizes, tokens = [0.05, 0.1, 0.2, 0.4], [1.0, 4.0, 16.0]
    return {
        "chinchilla, 4 N x 3 D, noise .01": Design(chinchilla, grid(sizes, tokens, [1]), 0.01),
        "chinchilla, 4 N x 3 D, noise .05": Design(chinchilla, grid(sizes, tokens, [1]), 0.05),
        "chinchilla, ribbon of 15, noise .01": Design(chinchilla, ribbon(15), 0.01),
        "chinchilla, ribbon of 30, noise .03": Design(chinchilla, ribbon(30), 0.03),
        "paper-E, 3 N x 3 D x 2 E, noise .005": Design(paper, grid([0.3, 0.5, 0.9], [100, 200, 500], [1, 8]), 0.005),
        "paper-E, 3 N x 3 D x 3 E, noise .01": Design(paper, grid([0.3, 0.5, 0.9], [100, 200, 500], [1, 4, 32]), 0.01),
    }


def trial(name: str, seed: int, resamples: int) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Of one table: which constants and which two losses the intervals hold, the share that failed, their widths."""
    law, points, noise = designs()[name]
    loss = law.loss(points) + np.random.default_rng(seed).normal(0, noise, len(points))
    ids = tuple(f"run-{place}" for place in range(len(points)))
    runs = Runs(points=points, loss=loss, ids=ids, repeated=np.zeros(len(points), bool))
    found = fit(runs, law.form, bootstraps=resamples, seed=seed)
    middle = {
        name: np.exp(np.log(getattr(points, name)).mean()) * np.ones(2) for name in ("n_active", "tokens", "experts")
    }
    middle["n_active"][1], middle["tokens"][1] = 4 * points.n_active.max(), 4 * points.tokens.max()
    probe = Points(**middle)
    low, high = found.law.interval(probe, LEVEL)
    truth = law.loss(probe)
    ends = np.array([found.law.parameter_interval(name, LEVEL) or (np.nan, np.nan) for name in found.free])
    values = np.array([law.parameters[name] for name in found.free])
    held = (ends[:, 0] <= values) & (values <= ends[:, 1])
    return held, (low <= truth) & (truth <= high), found.failed_resamples / resamples, high - low


def main() -> None:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    resamples = int(sys.argv[2]) if len(sys.argv) > 2 else 400
    print(f"{trials} trials, {resamples} resamples")
    print("| design | constants | worst | inside | beyond | widths (nats) | failed |\n|---|---|---|---|---|---|---|")
    with ProcessPoolExecutor(2) as pool:
        for name in designs():
            done = [*pool.map(trial, [name] * trials, range(trials), [resamples] * trials)]
            constants = np.mean([each[0] for each in done], axis=0)
            losses = np.mean([each[1] for each in done], axis=0)
            widths = np.median([each[3] for each in done], axis=0)
            failed = float(np.mean([each[2] for each in done]))
            print(
                f"| {name} | {constants.mean():.2f} | {constants.min():.2f} | {losses[0]:.2f} | {losses[1]:.2f} | "
                f"{widths[0]:.3f}; {widths[1]:.3f} | {failed:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
