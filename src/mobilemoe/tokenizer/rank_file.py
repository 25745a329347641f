"""Reads Meta's tokenizer.model, which is in tiktoken's format."""

from __future__ import annotations

import base64
from pathlib import Path

import tokenizers
from tokenizers import models

from mobilemoe.errors import TokenizerError
from mobilemoe.files import read_bytes
from mobilemoe.tokenizer.pipeline import (
    BEGIN_OF_TEXT,
    BYTE_TO_CHARACTER,
    END_OF_TEXT,
    EOM,
    EOT,
    HEADER_END,
    HEADER_START,
    add_specials,
    byte_level,
)

LLAMA3_RANKS = 128_000
LLAMA3_SPECIALS = 256
LLAMA3_SPECIAL_OFFSETS = {BEGIN_OF_TEXT: 0, END_OF_TEXT: 1, HEADER_START: 5, HEADER_END: 6, EOM: 7, EOT: 8}


def read_ranks(path: Path) -> tokenizers.Tokenizer:
    """The file has a line for each of 128,000 tokens, its bytes in base64 and its rank; 256 special ids follow."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_bytes(path, TokenizerError).splitlines(), start=1):
        try:
            encoded, rank = line.split()
            ranks[base64.b64decode(encoded, validate=True)] = int(rank)
        except ValueError:
            raise TokenizerError(f"line {number} is not a base64 token and its rank") from None
    if sorted(ranks.values()) != list(range(LLAMA3_RANKS)):
        raise TokenizerError(
            f"it does not hold each rank from 0 to {LLAMA3_RANKS - 1} once ({len(ranks)} tokens found)"
        )
    words = {token: "".join(BYTE_TO_CHARACTER[byte] for byte in token) for token in ranks}
    merges: list[tuple[str, str]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        # tiktoken joins any two neighbours whose bytes form a token, so each way to cut the token is a merge.
        cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [(left, right) for left, right in cuts if left in ranks and right in ranks]
        known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(words[left], words[right]) for left, right in known]
    vocab = {words[token]: rank for token, rank in ranks.items()}
    backend = byte_level(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    by_offset = {offset: name for name, offset in LLAMA3_SPECIAL_OFFSETS.items()}
    add_specials(backend, [by_offset.get(i, f"<|reserved_special_token_{i}|>") for i in range(LLAMA3_SPECIALS)])
    return backend
