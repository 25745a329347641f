"""Tables for `mobilemoe fit` from the training runs that others have published (docs/scaling.md, "Runs of others").

    git clone https://github.com/epoch-research/analyzing-chinchilla
    git clone https://github.com/mlfoundations/scaling
    git clone https://github.com/allenai/OLMo-ladder
    git clone https://github.com/step-law/steplaw
    python benchmarks/public_runs.py FOLDER_OF_CLONES OUT

Writes OUT/chinchilla-245.csv, -240, olmo-ladder, gadre-c4, gadre-rpj, gadre-rw, step-dense and step-moe. N and D are
plain counts, losses nats a token. `held_out` marks the runs that the authors themselves predict, where there are any.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def chinchilla(clones: Path) -> list[Row]:
    """The 245 points that Besiroglu et al. (arXiv 2404.10102) read from a figure of Hoffmann et al."""
    rows = []
    for row in _rows(clones / "analyzing-chinchilla/data/svg_extracted_data.csv"):
        flops, size = float(row["Training FLOP"]), float(row["Model Size"])
        rows.append({"loss": row["loss"], "n_active": size, "tokens": flops / (6 * size)})
    return rows


def without_worst(rows: list[Row], count: int) -> list[Row]:
    """Without the rows of highest loss: the authors leave out five."""
    return sorted(rows, key=lambda row: float(row["loss"]))[:-count]


def olmo(clones: Path) -> list[Row]:
    """The last loss on C4 of each run; the 3B runs are held out. N is without the embedding."""
    sizes = {"190M": 190354176, "370M": 371262464, "760M": 758220288, "1B": 1279395840, "3B": 3169537280}
    rows = []
    for size, count in sizes.items():
        for length in ("1xC", "2xC", "5xC", "10xC"):
            path = clones / f"OLMo-ladder/src/scripts/paper/data/ladder-runs/{size}-{length}.csv"
            last = max(_rows(path), key=lambda row: int(row["_step"]))
            loss, tokens = last["eval/c4_en-validation/CrossEntropyLoss"], float(last["throughput/total_tokens"])
            row = {"id": f"{size}-{length}", "loss": loss, "n_active_no_embedding": count, "tokens": tokens}
            rows.append(row | {"held_out": int(size == "3B")})
    return rows


def gadre(clones: Path, trained_on: str) -> list[Row]:
    """Loss on C4; the two runs that the paper predicts (1.4B at its most tokens, 6.9B) are held out."""
    rows = []
    for path in sorted((clones / "scaling/exp_data/models").glob(f"{trained_on}*.json")):
        run = json.loads(path.read_text())
        settings = run["hyperparameters"]
        loss = next(each["loss"] for each in run["results"] if "/c4_val/" in each["val_data"][0])
        large = "open_lm_7b" in path.name or ("open_lm_1b" in path.name and settings["chinchilla_multiplier"] > 1)
        row = {"id": path.stem, "loss": loss, "n_active": settings["params"], "tokens": settings["tokens"]}
        rows.append(row | {"held_out": int(large)})
    return rows


def step(clones: Path, name: str) -> list[Row]:
    """The best of all learning rates and batch sizes at each N and D (smoothed training loss)."""
    best: dict[tuple[str, ...], Row] = {}
    for row in _rows(clones / f"steplaw/data/{name}_lr_bs_loss.csv"):
        size = {"n_active_no_embedding": row["Na"], "n_total": row["N"]} if name == "moe" else {}
        new = {"loss": row["smooth loss"], **(size or {"n_active_no_embedding": row["N"]}), "tokens": row["D"]}
        key = tuple(value for column, value in new.items() if column != "loss")
        if row["smooth loss"] and (key not in best or float(new["loss"]) < float(best[key]["loss"])):
            best[key] = new
    return [*best.values()]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [*csv.DictReader(file)]


def _write(path: Path, rows: Iterable[Row]) -> None:
    rows = list(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    print(f"{path}: {len(rows)} rows")


def main() -> None:
    clones, out = map(Path, sys.argv[1:])
    out.mkdir(exist_ok=True)
    points = chinchilla(clones)
    _write(out / "chinchilla-245.csv", points)
    _write(out / "chinchilla-240.csv", without_worst(points, 5))
    _write(out / "olmo-ladder.csv", olmo(clones))
    for trained_on in ("c4", "rpj", "rw"):
        _write(out / f"gadre-{trained_on}.csv", gadre(clones, trained_on))
    for name in ("dense", "moe"):
        _write(out / f"step-{name}.csv", step(clones, name))


if __name__ == "__main__":
    main()
