"""How much text one token holds, by the size of the vocabulary: what makes losses of several vocabularies comparable.

A law is fitted at one vocabulary. For others `plan` takes a *prior*: two models with the same layers that are trained
on the same text predict it equally well, byte for byte, whatever their vocabularies. Vocabularies then differ in what
they cost: a small one has a small embedding and output head, but more tokens for the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Bytes per token in the 433,161 bytes of text of tests/data/heldout.jsonl (books, code, textbooks, specifications,
# documents, chats), of tokenizers that `data.train_tokenizer` made of 60 MB of such text
# (benchmarks/bytes_per_token.py). The largest would hold more if it had seen more text.
BYTES_PER_TOKEN = {4096: 2.9920, 8192: 3.3474, 16_384: 3.6675, 32_768: 3.9556, 65_536: 4.1682, 128_256: 4.3111}


class VocabularyBest(NamedTuple):
    """The best model of one vocabulary. score and loss: nats for each token of the first vocabulary."""

    vocabulary: int
    bytes_per_token: float | None
    score: float
    loss: float
    bits_per_byte: float | None
    width: float


def bytes_per_token(vocabulary: int) -> float | None:
    """Between the sizes measured a straight line in the logarithm of the size; None beyond them."""
    sizes = [*BYTES_PER_TOKEN]
    if not sizes[0] <= vocabulary <= sizes[-1]:
        return None
    return float(np.interp(np.log(vocabulary), np.log(sizes), [*BYTES_PER_TOKEN.values()]))


def text_of_tokens(vocabularies: Sequence[int]) -> dict[int, float] | None:
    """The text that a token of each holds, relative to a token of the first; None if that is not known for all."""
    if len(vocabularies) == 1:
        return {vocabularies[0]: 1.0}
    known = {size: held for size in vocabularies if (held := bytes_per_token(size)) is not None}
    if len(known) < len(vocabularies):
        return None
    return {size: held / known[vocabularies[0]] for size, held in known.items()}


def bits_per_byte(loss: float, reference: int) -> float | None:
    """Of a loss in nats for each token of the vocabulary `reference`; None if its bytes per token are not known."""
    held = bytes_per_token(reference)
    return None if held is None else loss / (np.log(2) * held)
