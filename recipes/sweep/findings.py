"""What the sweep's tables show besides the law: noise, documents, gains per doubling, and the paper's findings.

    python recipes/sweep/findings.py

Reads runs.csv and documents.csv beside it. All figures are in nats per token; intervals are 95% t intervals.
"""

from __future__ import annotations

import csv
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]

HERE = Path(__file__).parent
WEIGHTS = {"books": 72.0061, "textbooks": 2.8356, "code": 14.6984, "specs": 5.5826, "docs": 11.8699}  # as in grid.toml
BASE = "d256x7-e8g8s0"
MODELS = ("d192x5", "d256x7", "d320x8", "d384x10", "d448x12", "d512x13")
TOKENS = (12_288_000, 24_576_000, 49_152_000, 98_304_000)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def losses(rows: list[dict[str, str]]) -> dict[str, float]:
    """The losses by run id."""
    return {row["id"]: float(row["loss"]) for row in rows}


def run(model: str, tokens: int, seed: int = 0) -> str:
    return f"{model}-t{tokens}" + (f"-seed{seed}" if seed else "")


def by_seed(loss: dict[str, float], model: str, tokens: int) -> dict[int, float]:
    return {seed: loss[run(model, tokens, seed)] for seed in range(4) if run(model, tokens, seed) in loss}


def interval(values: Array) -> dict[str, Any]:
    """Mean, 95% t interval and standard deviation of independent values."""
    spread = float(values.std(ddof=1))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * spread / len(values) ** 0.5
    mean = float(values.mean())
    return {"mean": mean, "low": mean - half, "high": mean + half, "sd": spread, "seeds": len(values)}


def twins(loss: dict[str, float]) -> dict[str, dict[str, Any]]:
    """The spread of models that differ in the seed alone, and of the paired difference E = 8 minus dense."""
    found = {}
    for tokens in TOKENS[:2]:
        dense, mixture = (by_seed(loss, model, tokens) for model in ("d256x7-dense", BASE))
        for name, values in (("dense", dense), ("E = 8", mixture)):
            found[f"{tokens / 1e6:.1f} M, {name}"] = interval(np.array([*values.values()]))
        found[f"{tokens / 1e6:.1f} M, E = 8 - dense"] = interval(np.array([mixture[s] - dense[s] for s in dense]))
    return found


def findings(loss: dict[str, float]) -> tuple[list[dict[str, Any]], float]:
    """Differences to E = 8, g = 8, s = 0 at d256 and 24.6 M tokens in seeds 0 and 1, and the pooled SD of one run.

    `own`: half of the interval from these two differences alone (one degree of freedom, so very wide). `pooled`: from
    the scatter of seed 0 minus seed 1 over all mixtures, which assumes that all have the same variance.
    """
    models = sorted({name.rsplit("-t", 1)[0] for name in loss if name.startswith("d256x7-e")})
    pairs = {model: np.array([*by_seed(loss, model, TOKENS[1]).values()][:2]) for model in models}
    pairs = {model: pair for model, pair in pairs.items() if len(pair) == 2}
    gaps = np.array([pair[0] - pair[1] for pair in pairs.values()])
    spread = float(gaps.std(ddof=1)) / 2**0.5
    pooled = float(stats.t.ppf(0.975, len(gaps) - 1)) * spread  # for a mean of two differences of two runs each
    pairs["d256x7-dense"] = np.array([*by_seed(loss, "d256x7-dense", TOKENS[1]).values()][:2])
    table = []
    comparisons = [
        ("d256x7-dense", BASE),
        *((model, BASE) for model in models if model.endswith("s0") and model != BASE),
    ]
    comparisons += [(f"d256x7-e{e}g8s1", f"d256x7-e{e}g8s0") for e in (4, 8, 16)]
    for model, against in comparisons:
        gap = pairs[model] - pairs[against]
        own = interval(gap)
        dense = (
            model == "d256x7-dense"
        )  # dense models scatter more than mixtures, so the pooled interval does not apply to them
        table.append(
            {
                "model": model,
                "against": against,
                "difference": own["mean"],
                "own": own["high"] - own["mean"],
                "pooled": None if dense else pooled,
            }
        )
    return table, spread


def shared_expert(loss: dict[str, float]) -> dict[str, Any]:
    """The shared expert's difference over E = 4, 8, 16 and two seeds, taken as six independent pairs."""
    gaps = [
        loss[run(f"d256x7-e{e}g8s1", TOKENS[1], seed)] - loss[run(f"d256x7-e{e}g8s0", TOKENS[1], seed)]
        for e in (4, 8, 16)
        for seed in (0, 1)
    ]
    return interval(np.array(gaps))


def gains(loss: dict[str, float]) -> dict[str, list[float | None]]:
    """The gain of each doubling of D, for every trunk of seed 0. A law that adds a term in N to a term in D predicts
    the same gain for all N."""
    found: dict[str, list[float | None]] = {}
    for arm in ("dense", "e8g8s0"):
        for model in MODELS:
            at = [loss.get(run(f"{model}-{arm}", tokens)) for tokens in TOKENS]
            found[f"{model}-{arm}"] = [None if a is None or b is None else a - b for a, b in pairwise(at)]
    return found


def mixtures_gain(loss: dict[str, float]) -> dict[str, list[float | None]]:
    """Dense minus E = 8, g = 8 at equal active parameters, for each width and D."""
    found: dict[str, list[float | None]] = {}
    for model in MODELS:
        pairs = [[loss.get(run(f"{model}-{arm}", tokens)) for arm in ("dense", "e8g8s0")] for tokens in TOKENS]
        found[model] = [None if a is None or b is None else a - b for a, b in pairs]
    return found


def equal_bytes(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Seed 0: total and active parameters, compute 6 N D, and loss of mixtures and dense models of as many bytes."""
    names = [run(f"d256x7-{arm}", TOKENS[2]) for arm in ("e4g8s0", "e8g8s0")] + [run(BASE, TOKENS[3])]
    names += [run(f"{model}-dense", tokens) for model in ("d384x10", "d448x12") for tokens in TOKENS[1:3]]
    found = []
    for row in rows:
        if row["id"] in names:
            active, tokens = float(row["n_active"]), float(row["tokens"])
            found.append(
                {
                    "id": row["id"],
                    "n_active": active,
                    "n_total": float(row["n_total"]),
                    "compute": 6 * active * tokens,
                    "loss": float(row["loss"]),
                }
            )
    return sorted(found, key=lambda row: row["n_total"])


class Documents:
    """The nats of every held-out document, and the error due to the choice of documents."""

    def __init__(self, rows: list[dict[str, str]]) -> None:
        self.rows = rows
        self.targets = np.array([float(row["targets"]) for row in rows])
        self.domains = np.array([row["domain"] for row in rows])

    def nats(self, name: str) -> Array:
        return np.array([float(row[name]) for row in self.rows])

    def jackknife(self, nats: Array) -> tuple[float, float]:
        """The loss of these nats, weighted by source, and its standard error from leaving one document out at a time.

        The loss is linear in the nats: the difference of two runs' nats gives the error of their difference.
        """
        total, loss, variance = sum(WEIGHTS.values()), 0.0, 0.0
        for domain, weight in WEIGHTS.items():
            here = self.domains == domain
            some, targets, count = nats[here], self.targets[here], int(here.sum())
            left = (some.sum() - some) / (targets.sum() - targets)
            loss += weight / total * float(some.sum() / targets.sum())
            variance += (weight / total) ** 2 * (count - 1) / count * float(((left - left.mean()) ** 2).sum())
        return loss, variance**0.5


def everything() -> dict[str, Any]:
    rows, documents = read(HERE / "runs.csv"), Documents(read(HERE / "documents.csv"))
    loss = losses(rows)
    table, spread = findings(loss)
    pairs = [
        (run(BASE, TOKENS[1]), run("d256x7-dense", TOKENS[1])),
        (run("d512x13-dense", TOKENS[3]), run("d512x13-dense", TOKENS[2])),
        (run("d512x13-dense", TOKENS[3]), run("d192x5-dense", TOKENS[0])),
    ]
    return {
        "twins": twins(loss),
        "findings": table,
        "shared_expert": shared_expert(loss),
        "sd_of_a_mixture": spread,
        "gains": gains(loss),
        "mixtures_gain": mixtures_gain(loss),
        "equal_bytes": equal_bytes(rows),
        "document_error": documents.jackknife(documents.nats(run("d256x7-dense", TOKENS[2])))[1],
        "document_errors_of_differences": {
            f"{a} - {b}": documents.jackknife(documents.nats(a) - documents.nats(b))[1] for a, b in pairs
        },
    }


def main() -> None:
    found = everything()
    print("twins: standard deviation of one run, and of E = 8 less dense at one seed")
    for name, row in found["twins"].items():
        print(f"  {name:22s} mean {row['mean']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f}), SD {row['sd']:.4f}")
    print(f"d256, 24.6 M tokens, seeds 0 and 1; pooled SD of one mixture {found['sd_of_a_mixture']:.4f}")
    for row in found["findings"]:
        pooled = "" if row["pooled"] is None else f", pooled {row['pooled']:.4f}"
        print(f"  {row['model']:15s} - {row['against']:15s} {row['difference']:+.4f} +- {row['own']:.4f}{pooled}")
    row = found["shared_expert"]
    print(f"a shared expert over E = 4, 8, 16: {row['mean']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f}), 6 pairs")
    for key, title in (("gains", "gain of each doubling of D"), ("mixtures_gain", "dense - E8g8s0, over D")):
        print(title)
        for name, values in found[key].items():
            print(f"  {name:18s} " + "  ".join("missing" if v is None else f"{v:+.4f}" for v in values))
    print("equal bytes: total M, active M, compute 6 N D, loss")
    for row in found["equal_bytes"]:
        sizes = f"{row['n_total'] / 1e6:6.1f} {row['n_active'] / 1e6:6.1f}"
        print(f"  {row['id']:30s} {sizes}  {row['compute']:.2e}  {row['loss']:.4f}")
    print(f"choice of documents: standard error {found['document_error']:.4f} of a loss, and of differences")
    for name, error in found["document_errors_of_differences"].items():
        print(f"  {name}: {error:.4f}")


if __name__ == "__main__":
    main()
