"""What the third sweep's tables show besides the registered forecast; nothing here was registered, all is exploratory.

    python recipes/sweep/third/findings.py [PICTURE.png]

Reads runs.csv and order.csv beside it. Figures are in nats per token; intervals are 95% t intervals.
"""

from __future__ import annotations

import csv
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Interval = tuple[float, float]  # the middle and half the width

HERE = Path(__file__).parent
FORECAST = runpy.run_path(str(HERE / "forecast.py"), run_name="forecast")
DOMAINS = ("books", "textbooks", "code", "specs", "docs")
MODELS = ("d96x3", "d128x4", "d160x4", "d192x5", "d224x6", "d256x7", "d384x10")
TOKENS = (24_576_000, 34_406_400, 36_864_000, 49_152_000, 68_812_800, 73_728_000, 98_304_000)
EQUAL_BYTES = (("d96x3", "d160x4"), ("d128x4", "d224x6"), ("d160x4", "d256x7"))  # a mixture and a dense model
# The tokens of a dense model, and those of mixtures with about as much compute.
EQUAL_COMPUTE = {24_576_000: (49_152_000, 68_812_800), 34_406_400: (68_812_800, 98_304_000), 49_152_000: (98_304_000,)}
NOISE_OF = {36_864_000: 34_406_400, 73_728_000: 68_812_800}  # lengths with one pair or none: those next to them
MOST_SEEDS = 3


def read(name: str) -> list[dict[str, str]]:
    with (HERE / name).open(newline="") as handle:
        return list(csv.DictReader(handle))


ROWS = {row["id"]: row for row in read("runs.csv")}


def seeds(model: str, tokens: int, column: str = "loss") -> Array:
    """The loss of each seed."""
    names = (f"{model}-t{tokens}" + (f"-seed{seed}" if seed else "") for seed in range(MOST_SEEDS))
    return np.array([float(ROWS[name][column]) for name in names if name in ROWS])


def noise(arm: str, tokens: int, column: str = "loss") -> tuple[float, int]:
    """The standard deviation of one run, and the number of pairs that give it."""
    pairs = [seeds(f"{model}-{arm}", tokens, column)[:2] for model in MODELS]
    gaps = np.array([pair[0] - pair[1] for pair in pairs if len(pair) == 2])
    return (float(np.sqrt(np.mean(gaps**2) / 2)) if len(gaps) else np.nan), len(gaps)


def gap(dense: str, dense_tokens: int, mixture: str, tokens: int) -> Interval | None:
    """The loss of a dense model less that of a mixture; the interval comes from the noise over all widths (Welch)."""
    pair = (("dense", dense_tokens, dense), ("e8g8s0", tokens, mixture))
    losses = [seeds(f"{model}-{arm}", length) for arm, length, model in pair]
    if not all(map(len, losses)):
        return None
    spreads = [noise(arm, NOISE_OF.get(length, length)) for arm, length, _ in pair]
    parts = [spread**2 / len(values) for (spread, _), values in zip(spreads, losses, strict=True)]
    freedom = sum(parts) ** 2 / sum(part**2 / count for part, (_, count) in zip(parts, spreads, strict=True))
    return float(losses[0].mean() - losses[1].mean()), float(stats.t.ppf(0.975, freedom) * sum(parts) ** 0.5)


def equal_bytes() -> list[tuple[str, int, str, int, float, Interval]]:
    """Mixture, its tokens, dense model, its tokens, compute of the first over that of the second, and their gap: at
    equal tokens, and where the compute is the same within a tenth."""
    found: list[tuple[str, int, str, int, float, Interval]] = []
    for mixture, dense in EQUAL_BYTES:
        lengths = [(tokens, tokens) for tokens in TOKENS]
        lengths += [(short, long) for short, longer in EQUAL_COMPUTE.items() for long in longer]
        for short, long in lengths:
            pair = gap(dense, short, mixture, long)
            if pair is None:
                continue
            active, dense_active = (
                int(ROWS[name]["n_active"]) for name in (f"{mixture}-e8g8s0-t{long}", f"{dense}-dense-t{short}")
            )
            ratio = active * long / (dense_active * short)
            if short == long or 0.9 < ratio < 1.1:
                found.append((mixture, long, dense, short, ratio, pair))
    return found


def gains(arm: str, short: int, long: int) -> list[float]:
    """How much lower the loss is at the longer of two lengths, the mean of the seeds, for each width that has both."""
    both = [(seeds(f"{model}-{arm}", short), seeds(f"{model}-{arm}", long)) for model in MODELS]
    return [float(first.mean() - then.mean()) for first, then in both if len(first) and len(then)]


def shares() -> dict[str, Any]:
    """Share of the squared forecast error, and mean error, of the registered law, by arm, D and width."""
    table = FORECAST["read"](HERE / "runs.csv")
    unseen = table.part(table.held_out_R)
    model, count = FORECAST["LAWS"]["root (registered)"]
    errors = model(FORECAST["fit"](model, count, table.part(~table.held_out_R)), unseen) - unseen.loss_R
    rows = [ROWS[name] for name in unseen.ids]
    found: dict[str, Any] = {}
    for column in ("experts", "tokens", "hidden_size"):
        values = np.array([int(row[column]) for row in rows])
        for value in sorted(set(values.tolist())):
            part = errors[values == value]
            found[f"{column} {value}"] = (float(np.sum(part**2) / np.sum(errors**2)), float(part.mean()))
    return found


def forecasts() -> dict[str, dict[str, float]]:
    """The forecast error of each law for other losses and other runs, by the registered split."""
    table = FORECAST["read"](HERE / "runs.csv")
    tables = {}
    for domain in DOMAINS:
        tables[domain] = replace(table, loss_R=np.array([float(ROWS[name][f"loss_{domain}"]) for name in table.ids]))
    body_R = np.array([float(ROWS[name]["n_active_no_embedding"]) / 5e6 for name in table.ids])
    for name, runs in (("", table), (", N without embedding", replace(table, n_R=body_R))):
        tables[f"all{name}"] = runs
        tables[f"dense alone{name}"] = runs.part(runs.mixture_R == 0)
        tables[f"mixtures alone{name}"] = runs.part(runs.mixture_R == 1)
    found: dict[str, dict[str, float]] = {}
    for name, runs in tables.items():
        known, unseen = runs.part(~runs.held_out_R), runs.part(runs.held_out_R)
        found[name] = {}
        for law in ("root (registered)", "paper-E"):
            model, count = FORECAST["LAWS"][law]
            if "alone" in name:
                count = 5  # without what mixtures add
                wide = model

                def model(theta: Array, runs: Any, wide: Any = wide) -> Array:
                    result: Array = wide(np.concatenate([theta, np.zeros(4)]), runs)
                    return result

            errors = model(FORECAST["fit"](model, count, known), unseen) - unseen.loss_R
            found[name][law] = FORECAST["rmse"](errors)
    return found


def knobs() -> tuple[dict[str, Interval], float]:
    """Width 192, 24.6 M tokens: each model less E = 8, g = 8, with the scatter of all mixtures pooled; that scatter."""
    names = ("e2g8s0", "e4g8s0", "e16g8s0", "e32g8s0", "e8g2s0", "e8g4s0", "e8g16s0")
    groups = {name: seeds(f"d192x5-{name}", TOKENS[0]) for name in ("e8g8s0", *names)}
    freedom = sum(len(values) - 1 for values in groups.values())
    spread = float(np.sqrt(sum(((values - values.mean()) ** 2).sum() for values in groups.values()) / freedom))
    base = groups.pop("e8g8s0")
    half = float(stats.t.ppf(0.975, freedom)) * spread
    return {
        name: (float(values.mean() - base.mean()), half * (1 / len(values) + 1 / len(base)) ** 0.5)
        for name, values in groups.items()
    }, spread


def order() -> dict[str, tuple[float, float, Interval]]:
    """Mean and standard deviation over five seeds, and the 95% interval of the latter, for each order and domain."""
    found = {}
    for name in ("shuffled", "file-order"):
        for column in ("loss", *(f"loss_{domain}" for domain in DOMAINS)):
            values = np.array([float(row[column]) for row in read("order.csv") if row["order"] == name])
            freedom = len(values) - 1
            spread = float(values.std(ddof=1))
            low, high = spread * np.sqrt(freedom / stats.chi2.ppf([0.975, 0.025], freedom))
            found[f"{name} {column}"] = (float(values.mean()), spread, (float(low), float(high)))
    return found


def order_gap() -> tuple[float, float]:
    """The 95% interval (Welch) of the mean loss on shuffled shards less that in file order."""
    rows = read("order.csv")
    shuffled, in_files = (
        [float(row["loss"]) for row in rows if row["order"] == name] for name in ("shuffled", "file-order")
    )
    ends = stats.ttest_ind(shuffled, in_files, equal_var=False).confidence_interval()
    return float(ends.low), float(ends.high)


def draw(path: Path, table_path: Path = HERE / "runs.csv") -> None:
    """The errors of the registered law and of paper-E; docs/scaling.md shows those of the fourth sweep."""
    import matplotlib.pyplot as plt  # only here, since the figures above need no picture

    table = FORECAST["read"](table_path)
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.6), sharex=True, sharey=True, layout="constrained")
    for axis, name in zip(axes, ("root (registered)", "paper-E"), strict=True):
        model, count = FORECAST["LAWS"][name]
        theta = FORECAST["fit"](model, count, table.part(~table.held_out_R))
        errors = model(theta, table) - table.loss_R
        for mixture, color, arm in ((0, "tab:blue", "dense"), (1, "tab:red", "E = 8")):
            for unseen, fill, label in ((False, "none", "fitted"), (True, color, "forecast")):
                part = (table.mixture_R == mixture) & (table.held_out_R == unseen)
                style = {"markerfacecolor": fill, "markeredgecolor": color, "label": f"{arm}, {label}"}
                axis.plot(table.loss_R[part], errors[part], "o", markersize=5, **style)
        axis.axhline(0, color="grey", linewidth=1)
        axis.axhspan(-0.01, 0.01, color="grey", alpha=0.15, linewidth=0)  # the goal
        error = f"{FORECAST['rmse'](errors[table.held_out_R]):.4f}".removeprefix("0")
        axis.set(title=f"{name}: forecast RMSE {error}", xlabel="measured loss (nats per token)")
        axis.grid(alpha=0.3)
    axes[0].invert_xaxis()
    axes[0].set(ylabel="predicted - measured (nats)")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=80)


def main() -> None:
    print("the registered law: share of the squared forecast error, mean error")
    for name, (share, bias) in shares().items():
        print(f"  {name:20} {share:5.0%} {bias:+.4f}")
    print("forecast error of the root law and of paper-E")
    for name, laws in forecasts().items():
        print(f"  {name:37} " + "  ".join(f"{error:.4f}" for error in laws.values()))
    print("standard deviation of one run: all, " + ", ".join(DOMAINS))
    for arm in ("dense", "e8g8s0"):
        for tokens in TOKENS:
            spreads = [noise(arm, tokens, column)[0] for column in ("loss", *(f"loss_{name}" for name in DOMAINS))]
            pairs = noise(arm, tokens)[1]
            print(f"  {arm:7} {tokens / 1e6:5.1f} M, {pairs} pairs  " + " ".join(f"{spread:.4f}" for spread in spreads))
    for short, long in ((49_152_000, 98_304_000), (34_406_400, 68_812_800)):
        print(f"gain from {short / 1e6:.1f} to {long / 1e6:.1f} M tokens, by width")
        for arm in ("dense", "e8g8s0"):
            print(f"  {arm:7} " + " ".join(f"{gain:.3f}" for gain in gains(arm, short, long)))
    print("dense less E = 8 at equal active parameters: " + ", ".join(MODELS))
    for tokens in TOKENS:
        gaps = [gap(model, tokens, model, tokens) for model in MODELS]
        print(
            f"  {tokens / 1e6:5.1f} M  "
            + "  ".join("-" if pair is None else "{:+.3f} +- {:.3f}".format(*pair) for pair in gaps)
        )
    print("dense less E = 8 at equal bytes: equal tokens, then about equal compute")
    for mixture, tokens, dense, dense_tokens, ratio, pair in equal_bytes():
        print(f"  {mixture} E = 8 on {tokens / 1e6:.1f} M, {dense} dense on {dense_tokens / 1e6:.1f} M, ", end="")
        print("compute ratio {:.2f}: {:+.3f} +- {:.3f}".format(ratio, *pair))
    differences, spread = knobs()
    print(f"d192, 24.6 M tokens, less E = 8, g = 8; pooled standard deviation {spread:.4f}")
    for name, pair in differences.items():
        print("  {:8} {:+.3f} +- {:.3f}".format(name, *pair))
    low, high = order_gap()
    print(f"micro twins: shuffled less file order {low:+.4f} to {high:+.4f}; mean, standard deviation and its interval")
    for name, (mean, spread, ends) in order().items():
        print("  {:25} {:.4f} {:.4f} ({:.4f} to {:.4f})".format(name, mean, spread, *ends))


if __name__ == "__main__":
    main()
    for name in sys.argv[1:]:
        draw(Path(name))
