"""The registered analysis of the third sweep: laws fitted to the smaller runs, and how well they forecast the others.

    python recipes/sweep/third/forecast.py [RUNS.csv] [--from TOKENS]

Registered before any run: the law `root` must forecast the runs marked `held_out` with an RMSE <= .010 nats, and
better than every rival. For dense models and mixtures of E = 8

    L = c + (A N^-a + B D^-b)^k

where A, B, a and b of the mixtures differ from those of dense models. With k = 1 this is `paper-E`, whose E takes two
values here. Kaplan et al. 2020 (arXiv 2001.08361, equation 1.5) is the case c = 0: for k < 1 the gain from more data
grows with N. `root` has k = .55: 41 runs of the second sweep from 24.6 M tokens on give .557. Nine constants, as
`paper-E` has; `root, k fitted` has ten and is secondary.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

Array = NDArray[np.float64]

BLOCKS = {"large", "small", "middle", "seeds-small", "seeds-middle", "seeds-large"}
BLOCKS |= {"large-mixtures", "largest-mixtures"}  # of the fourth sweep, which registers this analysis too
K = 0.55
HUBER = 3e-3  # residuals of ln L beyond this count linearly


@dataclass(frozen=True)
class Table:
    """R runs: N in 5 million active parameters, D in 50 million tokens, 1 for mixtures and 0 for dense models."""

    ids: list[str]
    n_R: Array
    d_R: Array
    mixture_R: Array
    loss_R: Array
    held_out_R: NDArray[np.bool_]

    def part(self, chosen_R: NDArray[np.bool_]) -> Table:
        return Table(
            [name for name, kept in zip(self.ids, chosen_R, strict=True) if kept],
            self.n_R[chosen_R],
            self.d_R[chosen_R],
            self.mixture_R[chosen_R],
            self.loss_R[chosen_R],
            self.held_out_R[chosen_R],
        )


Model = Callable[[Array, Table], Array]


def read(path: Path, least_tokens: int = 0) -> Table:
    """The dense and E8g8s0 runs of the registered blocks, or of the whole table if it has none (the second sweep's)."""
    with path.open(newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["id"].split("-")[1] in ("dense", "e8g8s0")]
    if any(BLOCKS & set(row["block"].split("+")) for row in rows):
        rows = [row for row in rows if BLOCKS & set(row["block"].split("+"))]
    rows = [row for row in rows if int(row["tokens"]) >= least_tokens]

    def column(name: str) -> Array:
        return np.array([float(row[name]) for row in rows])

    return Table(
        [row["id"] for row in rows],
        column("n_active") / 5e6,
        column("tokens") / 5e7,
        (column("experts") > 1).astype(float),
        column("loss"),
        column("held_out") > 0,
    )


def root(theta: Array, runs: Table, k: float | None = None) -> Array:
    """theta: c; ln A, a, ln B, b of dense models; what mixtures add to each; k, unless it is given."""
    c, log_a, alpha, log_b, beta, *more = theta
    extra, m = more[:4], runs.mixture_R
    size = np.exp(log_a + extra[0] * m - (alpha + extra[1] * m) * np.log(runs.n_R))
    data = np.exp(log_b + extra[2] * m - (beta + extra[3] * m) * np.log(runs.d_R))
    result: Array = c + (size + data) ** (more[4] if k is None else k)
    return result


def two_chinchillas(theta: Array, runs: Table) -> Array:
    """A law for dense models and one for mixtures, which share nothing."""
    c, log_a, alpha, log_b, beta = theta[:5, None] + theta[5:10, None] * runs.mixture_R
    result: Array = c + np.exp(log_a - alpha * np.log(runs.n_R)) + np.exp(log_b - beta * np.log(runs.d_R))
    return result


def chinchilla(theta: Array, runs: Table) -> Array:
    return root(np.concatenate([theta, np.zeros(4)]), runs, 1.0)


def log_linear(theta: Array, runs: Table) -> Array:
    result: Array = theta[0] + theta[1] * np.log(runs.n_R) + theta[2] * np.log(runs.d_R) + theta[3] * runs.mixture_R
    return result


def constant(theta: Array, runs: Table) -> Array:
    return np.full_like(runs.loss_R, theta[0])


LAWS: dict[str, tuple[Model, int]] = {  # with the number of constants
    "root (registered)": (lambda theta, runs: root(theta, runs, K), 9),
    "root, k fitted": (root, 10),
    "paper-E": (lambda theta, runs: root(theta, runs, 1.0), 9),
    "two Chinchilla laws": (two_chinchillas, 10),
    "chinchilla": (chinchilla, 5),
    "log-linear": (log_linear, 4),
    "constant": (constant, 1),
}


def fit(model: Model, count: int, runs: Table) -> Array:
    """The constants of least Huber loss of ln(predicted / measured), from the best of a fixed set of starts."""
    best: tuple[float, Array] = (np.inf, np.zeros(count))
    for c, log_a, alpha, beta in product((1.0, 2.0, 2.8), (-0.7, 0.3), (0.25, 0.5), (0.4, 0.7)):
        start = np.zeros(count)
        start[: min(count, 5)] = np.array([c, log_a, alpha, log_a, beta])[:count]
        if model is root:
            start[9] = K
        with np.errstate(all="ignore"):
            found = least_squares(
                lambda theta: np.nan_to_num(np.log(np.maximum(model(theta, runs), 1e-3) / runs.loss_R), nan=1e3),
                start,
                loss="huber",
                f_scale=HUBER,
                max_nfev=3000,
            )
        if found.cost < best[0]:
            best = found.cost, found.x
    return best[1]


def rmse(errors: Array) -> float:
    return float(np.sqrt(np.mean(errors**2)))


def main(path: Path, least_tokens: int) -> None:
    runs = read(path, least_tokens)
    known, unseen = runs.part(~runs.held_out_R), runs.part(runs.held_out_R)
    span = (unseen.n_R * unseen.d_R).max() / (known.n_R * known.d_R).max()
    print(f"{len(known.ids)} runs fitted, {len(unseen.ids)} forecast, up to {span:.1f} times the compute")
    print(f"{'law':20} {'fitted':>8} {'forecast':>9} {'bias':>8} {'E8 - dense':>11} {'all, refitted':>14}")
    for name, (model, count) in LAWS.items():
        theta = fit(model, count, known)
        errors = model(theta, unseen) - unseen.loss_R
        again = model(fit(model, count, runs), runs) - runs.loss_R
        m = unseen.mixture_R > 0
        gap = errors[m].mean() - errors[~m].mean() if m.any() and not m.all() else np.nan
        fitted = rmse(model(theta, known) - known.loss_R)
        print(f"{name:20} {fitted:8.4f} {rmse(errors):9.4f} {errors.mean():+8.4f} {gap:+11.4f} {rmse(again):14.4f}")
        if model in (LAWS["root (registered)"][0], root):
            print("   constants", " ".join(f"{value:.4f}" for value in theta))
    noise(runs)


def noise(runs: Table) -> None:
    """The standard deviation of one run, from pairs that differ in the seed alone."""
    losses = dict(zip(runs.ids, runs.loss_R.tolist(), strict=True))
    for arm in ("dense", "e8g8s0"):
        gaps = [
            losses[name] - losses[f"{name}-seed1"]
            for name in losses
            if f"-{arm}-" in name and f"{name}-seed1" in losses
        ]
        if gaps:
            one = rmse(np.array(gaps)) / 2**0.5
            print(f"noise, {arm}: {one:.4f} for one run, {one / 2**0.5:.4f} for the mean of two ({len(gaps)} pairs)")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    least = int(float(arguments.pop(arguments.index("--from") + 1))) if "--from" in arguments else 0
    files = [value for value in arguments if value != "--from"]
    main(Path(files[0]) if files else Path(__file__).with_name("runs.csv"), least)
