"""Text to ids and back: byte-level BPE with Llama-3's split pattern and MobileMoE's special names (SPEC 3.4).

    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode("Hello, MobileMoE!", bos=True)
    text = tokenizer.decode(ids)

Special names inside a text are plain text unless `special=True` is said, so that nobody can write a control token.
"""

from __future__ import annotations

import base64
import codecs
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from mobilemoe.errors import TokenizerError
from mobilemoe.files import MAX_JSON_BYTES, write_atomic, write_json

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

LLAMA3_RANKS = 128_000
LLAMA3_SPECIALS = 256
LLAMA3_SPECIAL_OFFSETS = {BEGIN_OF_TEXT: 0, END_OF_TEXT: 1, HEADER_START: 5, HEADER_END: 6, EOM: 7, EOT: 8}


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


class Tokenizer:
    """A byte-level BPE tokenizer and the ids of its control tokens. Safe to share between threads."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Takes `backend` over; raises TokenizerError if it is not a byte-level BPE or cannot write every byte."""
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
        # Longest first: where one name begins another, the longer one is meant.
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
        for name, read in (("tokenizer.json", _read_json), ("tokenizer.model", _read_ranks)):
            path = folder / name
            if not path.exists():
                continue
            try:
                if path.stat().st_size > MAX_JSON_BYTES:
                    raise TokenizerError(f"it is larger than the {MAX_JSON_BYTES} bytes allowed here")
                return cls(read(path))
            except TokenizerError as fault:
                raise TokenizerError(f"{path} cannot be used: {fault}") from None
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
        write_atomic(folder / "tokenizer.json", self._backend.to_str())
        write_json(folder / "tokenizer_config.json", {key: value for key, value in config.items() if value is not None})

    def encode(self, text: str, *, bos: bool = False, special: bool = False) -> list[int]:
        """The ids of `text`, after the BOS id if `bos`; special names in it become control ids only if `special`."""
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
        try:
            return [found.ids for found in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        except TypeError:  # so the library says that it could not read a str as UTF-8
            raise TokenizerError("a text is not valid Unicode (half of a surrogate pair?): repair it first") from None

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`, byte for byte; bytes that are no UTF-8 become U+FFFD, ids without a token nothing."""
        return b"".join(self.token_bytes(i, skip_special=skip_special) for i in ids).decode(errors="replace")

    def token_bytes(self, token_id: int, *, skip_special: bool = True) -> bytes:
        """The bytes for which one id stands: none if it is special (and `skip_special`) or has no token."""
        if token_id in self.special_ids:
            return b"" if skip_special else self._added[token_id]
        if token_id in self._added:
            return self._added[token_id]
        token = self._backend.id_to_token(token_id) or ""
        try:
            return bytes(CHARACTER_TO_BYTE[character] for character in token)
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

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes: empty for a special id or while a character lacks bytes."""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """Ends the text: U+FFFD if it stopped inside a character, else nothing. The decoder can begin anew."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


def _read_json(path: Path) -> tokenizers.Tokenizer:
    text = path.read_bytes()
    try:
        return tokenizers.Tokenizer.from_buffer(text)
    except BaseException as fault:  # the library raises plain Exception, and its Rust panics not even that
        if not isinstance(fault, Exception) and type(fault).__name__ != "PanicException":
            raise
        raise TokenizerError(f"it is not a tokenizer file ({' '.join(str(fault).split())})") from None


def _read_ranks(path: Path) -> tokenizers.Tokenizer:
    """Meta's tiktoken form: a line of base64 bytes and rank for each of 128,000 tokens; 256 special ids follow."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
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
