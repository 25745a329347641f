"""The model card of a pruned model: how it was made, what that cost, and below it the card of the whole model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mobilemoe import accounting
from mobilemoe.checkpoint.draft import DRAFT
from mobilemoe.config import ModelConfig
from mobilemoe.errors import CheckpointError
from mobilemoe.files import read_text
from mobilemoe.prune.result import Pruned

CARD = "README.md"
_MOST_BYTES = 2**20
_FRONT = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)  # fields for the Hub, such as the licence
_MOST_HEADING = 6


def read_card(folder: Path) -> str:
    """The card of a model; "" if it has none. CheckpointError if it is no text."""
    path = folder / CARD
    return read_text(path, CheckpointError, _MOST_BYTES) if path.is_file() else ""


def pruned_card(
    card: str, source: Path, target: Path, configs: tuple[ModelConfig, ModelConfig], texts: Sequence[Path],
    found: Pruned, *, merged: bool,
) -> str:  # fmt: skip
    """The card of `target`, made of `source` with its `card`; `configs` are theirs, `texts` chose the experts."""
    front = matched[0] if (matched := _FRONT.match(card)) else ""
    whole = card.removeprefix(front)
    name = next(
        (line.removeprefix("# ") for line in whole.splitlines() if line.startswith("# ")), source.resolve().name
    )
    before, after = configs
    gone = "averaged into those that stay" if merged else "dropped"
    blocks = [
        f"# {target.resolve().name}",
        f"{name} for one domain: in each layer stay the {after.num_local_experts} of {before.num_local_experts} routed "
        f"experts that add most to its texts; the others are {gone}. Other texts can lose far more "
        "than these.",
        "\n".join(["| | before | after |", "|---|---|---|", *_rows(before, after, found)]),
        "## How it was made",
        f"`mobilemoe prune` chose the experts by {found.use.tokens:,} tokens of "
        f"{', '.join(f'`{path.name}`' for path in texts)}: by routing weight times the norm of an expert's output, "
        "summed over the tokens that choose it. Those that stay had "
        f"{found.share_L.mean():.1%} of the routing weight ({found.share_L.min():.1%} in the layer where they had "
        "least). Another part of the text measured, before and "
        "after. The experts that stay, numbered from 0 as in the whole model:",
        "\n".join(f"- layer {layer}: {', '.join(map(str, kept_N))}" for layer, kept_N in enumerate(found.kept_LN)),
    ]
    if (target / DRAFT).exists():
        blocks.append("The draft head is that of the whole model. It changes no text, but may guess fewer tokens.")
    if whole.strip():
        blocks += [
            "## The model it was made of",
            "What follows is the card of that model. Its licence and attributions hold on; sizes, speeds and scores "
            "are those of all experts.",
            "\n".join(_demoted(whole.strip())),
        ]
    return front + "\n\n".join(blocks) + "\n"


def _rows(before: ModelConfig, after: ModelConfig, found: Pruned) -> Iterator[str]:
    def row(what: str, *values: str) -> str:
        return f"| {what} | {' | '.join(values)} |"

    both = (before, after)
    yield row("routed experts in a layer", *(str(config.num_local_experts) for config in both))
    yield row("parameters", *(f"{accounting.total_parameters(config):,}" for config in both))
    yield row("active for a token", *(f"{accounting.active_parameters(config):,}" for config in both))
    yield row("bytes of weights", f"{found.before.bytes:,}", f"{found.after.bytes:,}")
    for name, score in found.before.scores.items():
        values = (f"{each.bits_per_byte:.4f}" for each in (score, found.after.scores[name]))
        yield row(f"bits per byte, {name.replace('|', ' ')}", *values)


def _demoted(text: str) -> Iterator[str]:
    """The lines of a card, its headings a level lower; a comment in a block of code is no heading."""
    fence = ""
    for line in text.splitlines():
        if matched := re.match(r" {0,3}(```+|~~~+)", line):
            fence = matched[1] if not fence else "" if line.strip().startswith(fence) else fence
        level = len(line) - len(line.lstrip("#"))
        is_heading = not fence and 0 < level < _MOST_HEADING and line[level : level + 1] == " "
        yield f"#{line}" if is_heading else line
