"""Trains a small byte-level BPE tokenizer, of the kind that llama.cpp calls "llama-bpe"."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tokenizers import models, pre_tokenizers, trainers

from mobilemoe.data.mixture import Mixture, refuse_tokens
from mobilemoe.data.stream import cut_text
from mobilemoe.errors import TokenizerError
from mobilemoe.tokenizer import SPECIAL_NAMES, Tokenizer, add_specials, byte_level, no_panic

BYTES = 256
MOST_CHARS = 2**14  # of a text that are trained on together: without a limit, one very long word would take hours


def train_tokenizer(
    texts: Iterator[str], vocab_size: int, *, on_progress: Callable[[int], None] | None = None
) -> Tokenizer:
    """A tokenizer of exactly `vocab_size` ids: 256 bytes, merges learnt from `texts`, then `SPECIAL_NAMES`.

    `on_progress` is called after each text with the UTF-8 bytes read so far. The same texts give the same tokenizer.
    Raises TokenizerError if `vocab_size` leaves no room for a merge or the texts hold too few pairs to reach it.
    """
    smallest = BYTES + len(SPECIAL_NAMES) + 1
    if vocab_size < smallest:
        raise TokenizerError(f"vocab_size is {vocab_size}, but bytes, special names and one merge need {smallest}")
    # Runtimes of llama-bpe look up a whole word before they merge. This option does the same, so that ids agree.
    backend = byte_level(models.BPE(ignore_merges=True))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_NAMES),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with no_panic("the texts cannot be split into words"):
        backend.train_from_iterator(_counted(texts, on_progress), trainer)
    add_specials(backend, SPECIAL_NAMES)
    tokenizer = Tokenizer(backend)
    if tokenizer.vocab_size != vocab_size:
        raise TokenizerError(
            f"the text is too small for {vocab_size} ids: it came to {tokenizer.vocab_size}; give more text, or ask "
            "for fewer ids"
        )
    return tokenizer


def mixture_texts(mixture: Mixture, total_bytes: int) -> Iterator[str]:
    """Texts of every source up to its share of `total_bytes`, or to the end of its first epoch."""
    refuse_tokens({name: stream.source for name, stream in mixture.streams.items()})
    for name, stream in mixture.streams.items():
        left = mixture.shares[name] * total_bytes
        while left > 0 and stream.position.epoch == 0:
            piece = next(stream)
            text = "\n".join(m["content"] for m in piece.messages or ()) if piece.text is None else piece.text
            left -= len(text.encode())
            yield from cut_text(text, MOST_CHARS)


def _counted(texts: Iterator[str], on_progress: Callable[[int], None] | None) -> Iterator[str]:
    seen = 0
    for text in texts:
        yield text
        seen += len(text.encode())
        if on_progress is not None:
            on_progress(seen)
