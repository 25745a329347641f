"""Text to ids and back."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders

from mobilemoe.errors import TokenizerError
from mobilemoe.files import atomic_folder, write_atomic, write_json
from mobilemoe.tokenizer.json_file import no_panic, read_json_file
from mobilemoe.tokenizer.pipeline import (
    BEGIN_OF_TEXT,
    BYTE_TO_CHARACTER,
    CHARACTER_TO_BYTE,
    END_OF_TEXT,
    EOM,
    EOT,
    HEADER_END,
    HEADER_START,
    LLAMA3_NAMES,
    SPECIAL_NAMES,
)
from mobilemoe.tokenizer.rank_file import read_ranks

# The regular expression backtracks over a run of blanks, and the library panics after ten million steps.
_LONGEST_BLANK = 1_000_000
_LONG_BLANK = re.compile(rf"\s{{{_LONGEST_BLANK}}}")


class Tokenizer:
    """A byte-level BPE tokenizer and the ids of its control tokens. Safe to share between threads."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Takes ownership of `backend`. Raises TokenizerError if it is not a byte-level BPE or lacks a byte."""
        if not isinstance(backend.decoder, decoders.ByteLevel):
            raise TokenizerError("the tokenizer is not a byte-level BPE, the only kind that MobileMoE models use")
        if any(backend.token_to_id(character) is None for character in BYTE_TO_CHARACTER):
            raise TokenizerError("the tokenizer lacks a token for some single byte, so it would lose text")
        backend.no_truncation()
        backend.no_padding()
        named = {token.content for token in backend.get_added_tokens_decoder().values()}
        # A control name that its file does not mark as special would be found inside ordinary text.
        control = [name for name in (*SPECIAL_NAMES, *LLAMA3_NAMES.values()) if name in named]
        backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in control])
        backend.encode_special_tokens = True  # special names in text stay text; `encode` finds them itself
        self.composes = backend.normalizer is not None  # to NFC, the only normalisation supported here
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self._specials = {token.content: token_id for token_id, token in added.items() if token.special}
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values()) + 1  # ids may have holes
        self.special_ids = frozenset(self._specials.values())
        self.bos_id = self._special(BEGIN_OF_TEXT)
        self.end_of_text_id = self._special(END_OF_TEXT)
        self.eot_id = self._special(EOT)
        self.header_start_id = self._special(HEADER_START)
        self.header_end_id = self._special(HEADER_END)
        stops = (self.end_of_text_id, self._special(EOM), self.eot_id)
        self.stop_ids: tuple[int, ...] = tuple(token_id for token_id in stops if token_id is not None)
        # Longest first: if one name is a prefix of another, the longer one is meant.
        names = sorted(self._specials, key=len, reverse=True)
        self.special_pattern: re.Pattern[str] = re.compile(f"({'|'.join(map(re.escape, names)) or '(?!)'})")

    def _special(self, name: str) -> int | None:
        return self._specials.get(name, self._specials.get(LLAMA3_NAMES.get(name, "")))

    @classmethod
    def load(cls, folder: Path | str) -> Tokenizer:
        """Reads `tokenizer.json`, else Meta's `tokenizer.model`, from `folder`.

        Raises TokenizerError, naming the file, if it is missing or damaged.
        """
        folder = Path(folder)
        for name, read in (("tokenizer.json", read_json_file), ("tokenizer.model", read_ranks)):
            path = folder / name
            try:
                if os.path.lexists(path):  # a link to a file that is gone is damage, not absence
                    return cls(read(path))
            except TokenizerError as fault:
                raise TokenizerError(f"{path} cannot be used: {str(fault).replace(str(path), 'it', 1)}") from None
            except OSError as fault:
                raise TokenizerError(f"{path} cannot be read: {fault.strerror}") from None
        raise TokenizerError(f"{folder} has neither tokenizer.json nor tokenizer.model: name a model's folder")

    def save(self, folder: Path | str, *, chat_template: str | None = None) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, which `transformers.AutoTokenizer` reads too."""
        folder = Path(folder)
        config: dict[str, object] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "bos_token": BEGIN_OF_TEXT if BEGIN_OF_TEXT in self._specials else None,
            "eos_token": END_OF_TEXT if END_OF_TEXT in self._specials else None,
            "chat_template": chat_template,
        }
        with nullcontext(folder) if folder.exists() else atomic_folder(folder, TokenizerError) as place:
            write_atomic(place / "tokenizer.json", self.to_json())
            known = {key: value for key, value in config.items() if value is not None}
            write_json(place / "tokenizer_config.json", known)

    def to_json(self) -> str:
        """The text of its `tokenizer.json`."""
        return self._backend.to_str()

    def encode(self, text: str, *, bos: bool = False, special: bool = False) -> list[int]:
        """The ids of `text`, preceded by the BOS id if `bos`. Special names become control ids only if `special`."""
        ids: list[int] = []
        if bos:
            if self.bos_id is None:
                raise TokenizerError(f"the tokenizer has no {BEGIN_OF_TEXT}: encode without it")
            ids.append(self.bos_id)
        pieces = self.special_pattern.split(text) if special else [text]
        for index, piece in enumerate(pieces):
            if index % 2:  # the pattern's one group: a special name
                ids.append(self._specials[piece])
            elif piece:
                ids += self._encode_plain([piece])[0]
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode(text)` for each text, on all cores."""
        return self._encode_plain(list(texts))

    def _encode_plain(self, texts: list[str]) -> list[list[int]]:
        if any(len(text) >= _LONGEST_BLANK and _LONG_BLANK.search(text) for text in texts):
            raise TokenizerError(f"a text has {_LONGEST_BLANK:,} blanks or more in a row: shorten them")
        with no_panic("a text cannot be split into words"):
            try:
                return [found.ids for found in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
            except TypeError:  # the library's way to report a str that is not valid Unicode
                raise TokenizerError("a text is not valid Unicode (half a surrogate pair?): repair it first") from None

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`. Bytes that are not UTF-8 become U+FFFD; ids without a token become nothing."""
        return b"".join(self.token_bytes(i, skip_special=skip_special) for i in ids).decode(errors="replace")

    def token_bytes(self, token_id: int, *, skip_special: bool = True) -> bytes:
        """The bytes of one id: none if it is special (and `skip_special`) or has no token."""
        if token_id in self.special_ids:
            return b"" if skip_special else self._added[token_id]
        if token_id in self._added:
            return self._added[token_id]
        token = self._backend.id_to_token(token_id) or ""
        try:
            return bytes(map(CHARACTER_TO_BYTE.__getitem__, token))
        except KeyError:  # not written in byte characters: the token is its own text
            return token.encode()

    @cached_property
    def _added(self) -> dict[int, bytes]:
        return {i: token.content.encode() for i, token in self._backend.get_added_tokens_decoder().items()}


class StreamDecoder:
    """Turns ids into text one at a time, never breaking a character: the pieces join to `decode` of all ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._is_inside = False  # a character of which bytes are missing

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes: empty for a special id or while a character lacks bytes."""
        data = self._tokenizer.token_bytes(token_id)
        if not self._is_inside and data.isascii():  # as most tokens are: this is faster
            return data.decode()
        text = self._utf8.decode(data)
        self._is_inside = self._utf8.getstate()[0] != b""
        return text

    def flush(self) -> str:
        """Ends the text: U+FFFD if it stopped inside a character, else nothing. The decoder can be used again."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        self._is_inside = False
        return rest
