"""The parts of a byte-level BPE: MobileMoE's special names (spec 3.4), Llama-3's split and the byte alphabet."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

BEGIN_OF_TEXT = "<|begin_of_text|>"
END_OF_TEXT = "<|end_of_text|>"
HEADER_START = "<|header_start|>"
HEADER_END = "<|header_end|>"
EOM = "<|eom|>"
EOT = "<|eot|>"
SPECIAL_NAMES = (BEGIN_OF_TEXT, END_OF_TEXT, HEADER_START, HEADER_END, EOM, EOT)  # in the order of their ids

LLAMA3_NAMES = {
    HEADER_START: "<|start_header_id|>",
    HEADER_END: "<|end_header_id|>",
    EOM: "<|eom_id|>",
    EOT: "<|eot_id|>",
}

# The split that runtimes call "llama-bpe": contractions, words, up to three digits, punctuation, line ends, spaces.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)


def _byte_characters() -> list[str]:
    """The character by which byte-level BPE writes each byte: itself if it prints, else the next one from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


BYTE_TO_CHARACTER = _byte_characters()
CHARACTER_TO_BYTE = {character: byte for byte, character in enumerate(BYTE_TO_CHARACTER)}


def byte_level(bpe: models.BPE) -> tokenizers.Tokenizer:
    """A `tokenizers` pipeline round `bpe`: Llama-3's split, then bytes; no normaliser, no special ids yet."""
    backend = tokenizers.Tokenizer(bpe)
    split = pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERN), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    backend.decoder = decoders.ByteLevel()
    return backend


def add_specials(backend: tokenizers.Tokenizer, names: Sequence[str]) -> None:
    """Gives `names` the next free ids; other libraries that read the saved file will then begin a text with BOS."""
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    bos = (BEGIN_OF_TEXT, backend.token_to_id(BEGIN_OF_TEXT))
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN_OF_TEXT} $A", pair=f"{BEGIN_OF_TEXT} $A {BEGIN_OF_TEXT}:1 $B:1", special_tokens=[bos]
    )
