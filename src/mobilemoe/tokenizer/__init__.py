"""Text to ids and back: byte-level BPE with Llama-3's split pattern and MobileMoE's special names (spec 3.4).

    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode("Hello, MobileMoE!", bos=True)
    text = tokenizer.decode(ids)

Names of special tokens inside a text are plain text unless `special=True`, so no user can write a control token.
"""

from mobilemoe.tokenizer.bpe import StreamDecoder, Tokenizer
from mobilemoe.tokenizer.json_file import no_panic
from mobilemoe.tokenizer.pipeline import (
    BYTE_TO_CHARACTER,
    EOT,
    HEADER_END,
    HEADER_START,
    SPECIAL_NAMES,
    add_specials,
    byte_level,
)

__all__ = [
    "BYTE_TO_CHARACTER",
    "EOT",
    "HEADER_END",
    "HEADER_START",
    "SPECIAL_NAMES",
    "StreamDecoder",
    "Tokenizer",
    "add_specials",
    "byte_level",
    "no_panic",
]
