"""The tokens that a model is measured with: real text, or pseudo-random tokens if it has no tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from mobilemoe.errors import TokenizerError
from mobilemoe.load import Model

TEXT = Path(__file__).parent / "books.txt"  # novels in the public domain, from recipes/data
_SEED = 1


@dataclass(frozen=True)
class Tokens:
    """The `ids`, their `source` in words, and whether a tokenizer made them (`is_text`)."""

    ids: list[int]
    is_text: bool
    source: str


def tokens_for(model: Model, count: int, *, dummy: bool) -> Tokens:
    """`count` ids of real text, repeated if it is too short; pseudo-random ids if `dummy`, or without a tokenizer."""
    reason = "as asked for"
    if not dummy:
        try:
            ids = model.encode(TEXT.read_text(encoding="utf-8"))
            return Tokens(list(islice(cycle(ids), count)), True, "real text")
        except TokenizerError:
            reason = "the model has no tokenizer"
    drawn = np.random.default_rng(_SEED).integers(0, model.config.vocab_size, count)
    return Tokens(drawn.tolist(), False, f"pseudo-random tokens ({reason})")
