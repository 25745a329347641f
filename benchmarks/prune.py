"""What it costs to drop experts for a domain: bits per byte in the domain and outside of it, by how they are chosen.

    python benchmarks/prune.py MODEL --text FILE --inside code --outside textbooks [--share 0.75 --share 0.5]
                               [--png FILE] [--json]

FILE chooses the experts; the domains that measure are those of tests/data/heldout.jsonl, which nano was not trained on.
Ways to choose the experts that stay in each layer: those that add most ("added", what `mobilemoe prune` does), that are
chosen most ("chosen"), that have the most routing weight ("weight"), that add most to a token that chooses them
("each"), the same number at random, and "merged", the first with the others averaged into them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import mobilemoe
from mobilemoe.checkpoint import Checkpoint
from mobilemoe.drawing import figure_kind, png
from mobilemoe.hub import find_model
from mobilemoe.progress import Progress
from mobilemoe.prune.choice import best_experts, merge_into_nearest
from mobilemoe.prune.prune import measure_texts, windows_of_texts
from mobilemoe.prune.texts import Text, read_texts, split_texts
from mobilemoe.prune.use import Use, measure_use
from mobilemoe.prune.write import write_pruned

HELDOUT = Path(__file__).parents[1] / "tests" / "data" / "heldout.jsonl"
WAYS = ("added", "chosen", "weight", "each", "random", "merged")


def score(use: Use, way: str, seed: int = 0) -> np.ndarray:
    """What ranks the experts, [L, E]."""
    scores = {
        "added": use.added_LE,
        "merged": use.added_LE,
        "chosen": use.chosen_LE,
        "weight": use.weight_LE,
        "each": use.added_LE / np.maximum(use.chosen_LE, 1),
        "random": np.random.default_rng(seed).random(use.added_LE.shape),
    }
    return scores[way]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    source = find_model(arguments.model)
    wanted = (arguments.inside, arguments.outside)
    texts = [text for text in read_texts([HELDOUT]) if text.domain in wanted][:: arguments.every]
    model = mobilemoe.load(source)
    rows = [{"way": "all", "share": 1.0, **bits(model, texts)}]
    with Checkpoint.open(source) as checkpoint:
        windows = windows_of_texts(model, split_texts([text.document for text in read_texts(arguments.text)]).chosen_by)
        use = measure_use(checkpoint, windows, distances=True)
        for share in arguments.share:
            experts = round(share * checkpoint.config.num_local_experts)
            for way in WAYS:
                kept_LN = best_experts(score(use, way), experts)
                merge = merge_into_nearest(use, kept_LN) if way == "merged" else None
                with tempfile.TemporaryDirectory() as folder:
                    write_pruned(checkpoint, target := Path(folder) / "pruned", kept_LN, merge)
                    size = (target / "model.safetensors").stat().st_size
                    row = {"way": way, "share": share, "experts": experts, "bytes": size}
                    rows.append({**row, **bits(mobilemoe.load(target), texts)})
                    print(json.dumps(rows[-1]), flush=True)
    return {"inside": arguments.inside, "outside": arguments.outside, "tokens": use.tokens, "rows": rows}


def bits(model: mobilemoe.load.Model, texts: list[Text]) -> dict[str, float]:  # type: ignore[name-defined]
    return {domain: found.bits_per_byte for domain, found in measure_texts(model, texts).items()}


def draw(found: dict[str, Any]) -> bytes:
    """Bits per byte over the share of experts that stay, one panel for each of the two domains."""
    figure = figure_kind("drawing what pruning costs", "train")(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    whole = found["rows"][0]
    for panel, side in zip(panels, ("inside", "outside"), strict=True):
        domain = found[side]
        for way in WAYS:
            rows = [whole, *(row for row in found["rows"] if row["way"] == way)]
            panel.plot([100 * row["share"] for row in rows], [row[domain] for row in rows], "o-", label=way)
        panel.set_title(f"{side} the domain: {domain}", fontsize=10)
        panel.set_xlabel("experts of each layer that stay, %")
        panel.set_ylabel("bits per byte")
        panel.set_xlim(105, 20)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    return png(figure, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, action="append", required=True)
    parser.add_argument("--inside", required=True)
    parser.add_argument("--outside", required=True)
    parser.add_argument("--share", type=float, action="append")
    parser.add_argument("--every", type=int, default=1, help="measure with one in so many texts")
    parser.add_argument("--png", type=Path)
    arguments = parser.parse_args()
    arguments.share = arguments.share or [0.75, 0.5, 0.25]
    with Progress():
        found = measure(arguments)
    if arguments.png:
        arguments.png.write_bytes(draw(found))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
