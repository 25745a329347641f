"""What the fourth sweep's table shows besides the registered forecast.

    python recipes/sweep/fourth/findings.py [PICTURE.png]

Reads runs.csv beside it and that of the second sweep, whose setting this one repeats. Registered are the forecasts of
dense models and mixtures apart, and the differences of `knobs`; all else is exploratory. Figures are in nats per token.
"""

from __future__ import annotations

import csv
import runpy
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Interval = tuple[float, float]  # the middle and half the width

HERE = Path(__file__).parent
FORECAST = runpy.run_path(str(HERE.parent / "third" / "forecast.py"), run_name="forecast")
THIRD = runpy.run_path(str(HERE.parent / "third" / "findings.py"), run_name="findings")
DOMAINS = ("books", "textbooks", "code", "specs", "docs")
MODELS = ("d128x4", "d192x5", "d256x7", "d320x8", "d384x10", "d448x12", "d512x13")
TOKENS = (24_576_000, 34_406_400, 49_152_000, 68_812_800, 98_304_000)
ROOT = "root (registered)"
MOST_SEEDS = 3


def read(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as handle:
        return {row["id"]: row for row in csv.DictReader(handle)}


ROWS = read(HERE / "runs.csv")
SECOND = read(HERE.parent / "runs.csv")


def seeds(model: str, tokens: int, column: str = "loss") -> Array:
    """The loss of each seed."""
    names = (f"{model}-t{tokens}" + (f"-seed{seed}" if seed else "") for seed in range(MOST_SEEDS))
    return np.array([float(ROWS[name][column]) for name in names if name in ROWS])


def pooled(groups: list[Array]) -> tuple[float, int]:
    """The standard deviation of one run within groups of seeds, and its degrees of freedom."""
    freedom = sum(max(len(values) - 1, 0) for values in groups)
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in groups if len(values))
    return (squares / freedom) ** 0.5, freedom


def noise(arm: str, tokens: tuple[int, ...] = TOKENS, column: str = "loss") -> tuple[float, int]:
    return pooled([seeds(f"{model}-{arm}", length, column) for model in MODELS for length in tokens])


def gap(dense_model: str, dense_tokens: int, mixture_model: str, tokens: int) -> Interval | None:
    """The loss of a dense model less that of E = 8; the 95% interval comes from the noise over all lengths (Welch)."""
    dense, mixture = seeds(f"{dense_model}-dense", dense_tokens), seeds(f"{mixture_model}-e8g8s0", tokens)
    if not (len(dense) and len(mixture)):
        return None
    parts = []
    for arm, values in (("dense", dense), ("e8g8s0", mixture)):
        spread, count = noise(arm)
        parts.append((spread**2 / len(values), count))
    total = sum(part for part, _ in parts)
    freedom = total**2 / sum(part**2 / count for part, count in parts)
    return float(dense.mean() - mixture.mean()), float(stats.t.ppf(0.975, freedom)) * total**0.5


def equal_bytes() -> list[tuple[int, int, Interval]]:
    """Dense d448 (45.9 M parameters) less d256 with E = 8 (50.2 M): the tokens of each and the gap, for equal tokens
    and, last, for equal compute."""
    lengths = [*((tokens, tokens) for tokens in TOKENS), (TOKENS[0], TOKENS[-1])]
    found = [(dense, mixture, gap("d448x12", dense, "d256x7", mixture)) for dense, mixture in lengths]
    return [(dense, mixture, pair) for dense, mixture, pair in found if pair]


def trunk_correlation(arm: str) -> float:
    """How seed 1 or 2 less seed 0 at one length correlates with the same at another length of the two trunks."""
    products, squares = [], []
    for model in MODELS:
        losses = [seeds(f"{model}-{arm}", tokens) for tokens in TOKENS]
        for seed in range(1, MOST_SEEDS):
            gaps = [values[seed] - values[0] for values in losses if len(values) > seed]
            for first, second in combinations(gaps, 2):
                products.append(first * second)
                squares.append((first**2, second**2))
    return float(np.mean(products) / np.sqrt(np.prod(np.mean(squares, axis=0))))


def knobs() -> dict[str, Interval]:
    """Width 192, 49.2 M tokens: each model less E = 8, g = 8, s = 0, with the noise of all mixtures pooled."""
    spread, freedom = noise("e8g8s0")
    base = seeds("d192x5-e8g8s0", TOKENS[2])
    found = {}
    for name in ("dense", "e2g8s0", "e16g8s0", "e8g1s0", "e8g8s1"):
        values = seeds(f"d192x5-{name}", TOKENS[2])
        half = float(stats.t.ppf(0.975, freedom)) * spread * (1 / len(values) + 1 / len(base)) ** 0.5
        found[name] = (float(values.mean() - base.mean()), half)
    return found


def repeats(arm: str) -> tuple[float, float, int]:
    """This sweep less the second, for runs of equal settings and seed: mean, standard deviation, number."""
    gaps = [float(ROWS[name]["loss"]) - float(SECOND[name]["loss"]) for name in ROWS if name in SECOND and arm in name]
    return float(np.mean(gaps)), float(np.std(gaps, ddof=1)), len(gaps)


def bodies(table: Any, rows: dict[str, dict[str, str]]) -> Any:
    """The table with N without the embedding."""
    return replace(table, n_R=np.array([float(rows[name]["n_active_no_embedding"]) / 5e6 for name in table.ids]))


def join(first: Any, second: Any) -> Any:
    columns = ("n_R", "d_R", "mixture_R", "loss_R", "held_out_R")
    both = [np.concatenate([getattr(first, name), getattr(second, name)]) for name in columns]
    return FORECAST["Table"]([*first.ids, *second.ids], *both)


def predict(law: str, known: Any, unseen: Any) -> Array:
    """The errors of a law, for tables of both arms or of one (then without what mixtures add)."""
    model, count = FORECAST["LAWS"][law]
    if len(set(known.mixture_R)) == 1:
        k = {ROOT: FORECAST["K"], "paper-E": 1.0}[law]
        theta = FORECAST["fit"](lambda theta, runs: one_arm(theta, runs, k), 5, known)
        errors: Array = one_arm(theta, unseen, k) - unseen.loss_R
    else:
        errors = model(FORECAST["fit"](model, count, known), unseen) - unseen.loss_R
    return errors


def one_arm(theta: Array, runs: Any, k: float) -> Array:
    result: Array = FORECAST["root"](
        np.concatenate([theta, np.zeros(4)]), replace(runs, mixture_R=runs.mixture_R * 0), k
    )
    return result


def splits() -> dict[str, tuple[Any, Any]]:
    """The runs that are fitted and those that are forecast: by the registered split, and by others."""
    table = FORECAST["read"](HERE / "runs.csv")
    second = FORECAST["read"](HERE.parent / "runs.csv", TOKENS[0])
    body = bodies(table, ROWS)
    tables = {"all": table, "all, N without embedding": body}
    for name, runs in (("", table), (", N without embedding", body)):
        tables[f"dense alone{name}"] = runs.part(runs.mixture_R == 0)
        tables[f"mixtures alone{name}"] = runs.part(runs.mixture_R == 1)
    for domain in DOMAINS:
        tables[domain] = replace(table, loss_R=np.array([float(ROWS[name][f"loss_{domain}"]) for name in table.ids]))
    tables["from 34.4 M tokens"] = table.part(table.d_R > 0.6)
    tables["from 34.4 M tokens, N without embedding"] = body.part(body.d_R > 0.6)
    tables["seed 0"] = table.part(np.array(["seed" not in name for name in table.ids]))
    tables["second sweep from 24.6 M"] = second
    tables["second sweep from 24.6 M, N without embedding"] = bodies(second, SECOND)
    tables["second and fourth"] = join(second, table)
    tables["second and fourth, N without embedding"] = join(bodies(second, SECOND), body)
    found = {name: (runs.part(~runs.held_out_R), runs.part(runs.held_out_R)) for name, runs in tables.items()}
    found["second's smaller, then fourth's larger"] = found["second sweep from 24.6 M"][0], found["all"][1]
    found["fourth, then second"] = table, second
    width_R = np.array([int(ROWS[name]["hidden_size"]) for name in table.ids])
    found["24.6 to 49.2 M tokens, then 98.3 M"] = table.part(table.d_R < 1), table.part(table.d_R > 1.9)
    found["24.6 to 68.8 M tokens, then 98.3 M"] = table.part(table.d_R < 1.9), table.part(table.d_R > 1.9)
    found["widths 128 to 256, then 320 to 512"] = table.part(width_R <= 256), table.part(width_R > 256)
    for name, runs in (("", table), (", N without embedding", body)):
        wide_R = (width_R > 128) & ~runs.held_out_R
        found[f"without width 128{name}"] = runs.part(wide_R), runs.part(runs.held_out_R)
    found["widths 128 to 320, then 384 to 512"] = table.part(width_R <= 320), table.part(width_R > 320)
    return found


def forecasts() -> dict[str, dict[str, Array]]:
    """The errors of the registered law and of paper-E for each split."""
    return {name: {law: predict(law, *pair) for law in (ROOT, "paper-E")} for name, pair in splits().items()}


def fitted_to_all() -> dict[str, tuple[float, float, float]]:
    """RMSE of the registered law and of `root, k fitted` when nothing is forecast, and this k, by how N is counted."""
    table = FORECAST["read"](HERE / "runs.csv")
    body = bodies(table, ROWS)
    second = bodies(FORECAST["read"](HERE.parent / "runs.csv", TOKENS[0]), SECOND)
    tables = {"N": table, "N without embedding": body, "this N, second and fourth": join(second, body)}
    found = {}
    for name, runs in tables.items():
        theta = FORECAST["fit"](FORECAST["root"], 10, runs)
        free = FORECAST["rmse"](FORECAST["root"](theta, runs) - runs.loss_R)
        found[name] = (FORECAST["rmse"](predict(ROOT, runs, runs)), free, float(theta[9]))
    return found


def chances(tables: int, trunk_share: float = 0.75) -> Array:
    """Forecast RMSE of the registered law for simulated tables of this design where this law is true: as fitted to all
    runs, with the measured noise, of whose variance `trunk_share` is common to all lengths of a trunk."""
    table = FORECAST["read"](HERE / "runs.csv")
    model, count = FORECAST["LAWS"][ROOT]
    truth_R = model(FORECAST["fit"](model, count, table), table)
    spread_R = np.where(table.mixture_R > 0, noise("e8g8s0")[0], noise("dense")[0])
    _, trunk_R = np.unique([ROWS[name]["trunk"] for name in table.ids], return_inverse=True)
    random = np.random.default_rng(0)
    errors = []
    for _ in range(tables):
        common_R = random.normal(size=trunk_R.max() + 1)[trunk_R] * trunk_share**0.5
        own_R = random.normal(size=len(trunk_R)) * (1 - trunk_share) ** 0.5
        runs = replace(table, loss_R=truth_R + spread_R * (common_R + own_R))
        errors.append(FORECAST["rmse"](predict(ROOT, runs.part(~runs.held_out_R), runs.part(runs.held_out_R))))
    return np.array(errors)


def errors_by_place() -> dict[str, float]:
    """Mean error of the registered law by arm, width and D, e.g. `d512x13-dense-t98304000`."""
    table = FORECAST["read"](HERE / "runs.csv")
    errors = predict(ROOT, table.part(~table.held_out_R), table)
    places = np.array([name.split("-seed")[0] for name in table.ids])
    return {place: float(errors[places == place].mean()) for place in sorted(set(places))}


def main() -> None:
    print("forecast RMSE and mean error of the root law, then of paper-E")
    for name, laws in forecasts().items():
        cells = "   ".join(f"{FORECAST['rmse'](errors):.4f} {errors.mean():+.4f}" for errors in laws.values())
        print(f"  {name:46} {len(laws[ROOT]):3} runs  {cells}")
    print("fitted to all runs: RMSE of the root law, with k fitted too, and this k")
    for name, values in fitted_to_all().items():
        print(f"  {name:26} " + "  ".join(f"{value:.4f}" for value in values))
    drawn = chances(100)
    middle, high = np.quantile(drawn, (0.5, 0.95))
    within = (drawn <= 0.01).mean()
    print(
        f"if the law were true: median {middle:.4f}, 95% below {high:.4f}, at most .010 in {within:.0%} of 100 tables"
    )
    print("mean error of the registered law by width, and dense less E = 8")
    found = errors_by_place()
    for tokens in TOKENS:
        for arm in ("dense", "e8g8s0"):
            values = (found.get(f"{model}-{arm}-t{tokens}") for model in MODELS)
            cells = " ".join("   -   " if value is None else f"{value:+.4f}" for value in values)
            print(f"  {arm:7} {tokens / 1e6:5.1f} M  {cells}")
        pairs = [gap(model, tokens, model, tokens) for model in MODELS]
        print("  gap    ", " ".join("-" if pair is None else "{:+.3f} +- {:.3f}".format(*pair) for pair in pairs))
    print("standard deviation of one run, by length and pooled, with degrees of freedom: " + ", ".join(DOMAINS))
    for arm in ("dense", "e8g8s0"):
        for column in ("loss", *(f"loss_{domain}" for domain in DOMAINS)):
            parts = [noise(arm, (tokens,), column) for tokens in TOKENS] + [noise(arm, column=column)]
            print(f"  {arm:7} {column:15} " + " ".join("{:.4f} ({})".format(*part) for part in parts))
        print("  less the second sweep: mean {:+.4f}, standard deviation {:.4f}, {} runs".format(*repeats(arm)))
        print(f"  correlation between lengths of a trunk {trunk_correlation(arm):.2f}")
    print("equal bytes, dense d448 less d256 with E = 8: tokens of each")
    for dense, mixture, pair in equal_bytes():
        print(f"  {dense / 1e6:5.1f} M {mixture / 1e6:5.1f} M  " + "{:+.3f} +- {:.3f}".format(*pair))
    print("d192, 49.2 M tokens, less E = 8, g = 8")
    for name, pair in knobs().items():
        print("  {:8} {:+.3f} +- {:.3f}".format(name, *pair))


if __name__ == "__main__":
    main()
    for name in sys.argv[1:]:
        THIRD["draw"](Path(name), HERE / "runs.csv")
