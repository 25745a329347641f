"""How far a model has moved from its parent: bits per byte of both, divergence and agreement token by token.

T tokens, V vocabulary, R rows: some of the T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobilemoe.errors import UsageError
from mobilemoe.evaluate.bits_per_byte import Score, encode_entry, sum_by_domain
from mobilemoe.load import Model
from mobilemoe.sampling import log_softmax

_LOGITS = 2**27  # of each model at a time, half a GB: 1,046 tokens at 128,256 entries
_ROWS = 64  # tokens whose distributions are worked on at a time, in float64


@dataclass
class Comparison(Score):
    """A score of the model with more sums, `nats` being those of KL(parent || model); the properties are ratios."""

    parent_bits: float = 0.0
    nats: float = 0.0
    agreed: int = 0

    @property
    def parent_bits_per_byte(self) -> float:
        """The parent's."""
        return self.parent_bits / self.bytes

    @property
    def divergence(self) -> float:
        """KL(parent || model) in nats, mean over tokens."""
        return self.nats / self.tokens

    @property
    def agreement(self) -> float:
        """The share of tokens at whose place both models find the same token the likeliest."""
        return self.agreed / self.tokens


def compare_file(
    model: Model,
    parent: Model,
    path: Path | str,
    *,
    window: int | None = None,
    on_text: Callable[[int], None] | None = None,
) -> dict[str, Comparison]:
    """Comparisons over a JSONL file's texts by their domain, and "all": lines, windows and errors as in `score_file`.

    The default window is the shorter context of the two, but no more than half a GB of logits each. UsageError if the
    models do not read a text as the same tokens.
    """
    longest = min(model.config.max_position_embeddings, parent.config.max_position_embeddings)
    window = min(longest, max(2, _LOGITS // model.config.vocab_size)) if window is None else window
    if not 2 <= window <= longest:
        raise UsageError(f"the window is {window}, but must be from 2 to {longest}")
    if model.config.vocab_size != parent.config.vocab_size:
        raise UsageError(
            f"the vocabularies have {model.config.vocab_size} and {parent.config.vocab_size} entries: "
            "only models of one tokenizer can be compared"
        )

    def compare(place: str, entry: dict[str, Any]) -> Comparison:
        return _compare_text(model, parent, place, entry, window)

    return sum_by_domain(Path(path), Comparison, compare, on_text)


def _compare_text(model: Model, parent: Model, place: str, entry: dict[str, Any], window: int) -> Comparison:
    ids, size = encode_entry(model, place, entry)
    if encode_entry(parent, place, entry)[0] != ids:
        raise UsageError(f"{place}: the two models read this text as different tokens and cannot be compared")
    text = Comparison(bytes=size, tokens=len(ids) - 1, texts=1)
    for at in range(1, len(ids), window - 1):
        targets = ids[at : at + window - 1]
        _add_window(text, model, parent, [ids[0], *targets[:-1]], np.array(targets))
    return text


def _add_window(text: Comparison, model: Model, parent: Model, ids: list[int], targets_T: np.ndarray[Any, Any]) -> None:
    logits_TV, parent_logits_TV = model.logits(ids), parent.logits(ids)
    for start in range(0, len(ids), _ROWS):
        rows = slice(start, start + _ROWS)
        log_q_RV, log_p_RV = log_softmax(logits_TV[rows]), log_softmax(parent_logits_TV[rows])
        chosen_R1 = targets_T[rows, None]
        text.bits -= float(np.take_along_axis(log_q_RV, chosen_R1, 1).sum()) / math.log(2)
        text.parent_bits -= float(np.take_along_axis(log_p_RV, chosen_R1, 1).sum()) / math.log(2)
        text.nats += float((np.exp(log_p_RV) * (log_p_RV - log_q_RV)).sum())
        text.agreed += int((log_q_RV.argmax(axis=1) == log_p_RV.argmax(axis=1)).sum())
