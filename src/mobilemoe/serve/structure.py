"""What an answer has to look like, kept by llguidance: it says which tokens may come next (arXiv 2403.06988).

A grammar is text in llguidance's form of Lark. Its whole language is checked token by token, so an answer that ends by
itself is always a word of it.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import llguidance
import numpy as np

from mobilemoe.engine.guides import Bits
from mobilemoe.serve.bounds import check_bounds
from mobilemoe.serve.errors import ApiError
from mobilemoe.serve.fields import JsonObjectFormat, JsonSchemaFormat, ResponseFormat, StructuredOutputs
from mobilemoe.tokenizer import Tokenizer

# Between two parts of JSON: nothing, one blank, or one line break with blanks. A bound, for a model could write on.
_WHITESPACE = r" |\n[ \t]{0,20}"
_KEPT, _LARGEST_KEPT = 32, 2**16  # compiled grammars, from the newest; characters of one
_PLACE = re.compile(r"^(at )?\d+\(\d+\): (failed to compile JSON schema: )?")


def json_rule(schema: Mapping[str, Any], *, exact: bool = True) -> str:
    """JSON that fits `schema`, for use in a grammar. Not `exact`: keywords that cannot be followed are left out."""
    options = {"whitespace_pattern": _WHITESPACE, "lenient": not exact, "coerce_one_of": not exact}
    return f"%json {json.dumps({**schema, 'x-guidance': options})}"


def text_rule(text: str) -> str:
    """Just this text, for use in a grammar."""
    return json.dumps(text)


def grammar(*rules: str) -> str:
    """Of lines, the first of them for `start`."""
    return "\n".join(["%llguidance {}", *rules])


def format_rule(asked: ResponseFormat | None) -> str | None:
    """None where any text will do."""
    if isinstance(asked, JsonObjectFormat):
        return json_rule({"type": "object"})
    if isinstance(asked, JsonSchemaFormat):
        return json_rule(asked.json_schema.value, exact=asked.json_schema.strict)
    return None


def outputs_grammar(asked: StructuredOutputs) -> str:
    if asked.grammar is not None:
        return asked.grammar
    if asked.regex is not None:
        return str(llguidance.LLMatcher.grammar_from_regex(asked.regex))
    if asked.choice is not None:
        return grammar("start: " + " | ".join(map(text_rule, asked.choice)))
    return grammar("start: " + json_rule({"type": "object"} if asked.value is None else asked.value))


@dataclass(frozen=True)
class Structure:
    """A grammar that fits the model's tokens; `unkept` are the parts of a schema that it leaves out, in sentences."""

    matcher: llguidance.LLMatcher
    words: int
    unkept: tuple[str, ...]

    def guide(self) -> GrammarGuide:
        """For one text, at its beginning."""
        return GrammarGuide(self.matcher.deep_copy(), self.words)


class GrammarGuide:
    """The `Guide` of one text: allows what keeps it in the grammar, and the end where it may end."""

    def __init__(self, matcher: llguidance.LLMatcher, words: int) -> None:
        self._matcher = matcher
        self._bits_V: Bits = np.zeros(words, np.uint32)
        # Looked up once, as that takes some microseconds, and a small model makes a step in 200.
        self._place = (self._bits_V.ctypes.data, self._bits_V.nbytes)
        self._taken: list[int] = []

    def take(self, token: int) -> None:
        self._taken.append(token)  # read by `allowed`, which has its own thread

    def allowed(self) -> Bits:
        """ApiError 400 for a grammar that needs more work for one token than the limits of llguidance allow."""
        taken, self._taken = self._taken, []
        if self._matcher.consume_tokens(taken):
            self._matcher.unsafe_compute_mask_ptr(*self._place)
        if self._matcher.is_error():
            raise ApiError(400, f"the grammar could not be followed: {_sentence(self._matcher.get_error())}")
        return self._bits_V


class Grammars:
    """Compiles grammars for a model's tokens, and keeps the newest that are not large. Safe to share between threads.

    `vocab_size` is the model's, which may have ids that the tokenizer has not. `stop_ids` are allowed where a text may
    end. The table of tokens is made at first use, in some seconds for 128,256 of them.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: Collection[int]) -> None:
        self._tokenizer, self._vocab_size, self._stop_ids = tokenizer, vocab_size, sorted(stop_ids)
        self._lock = threading.Lock()
        self._compiled = lru_cache(_KEPT)(self._compile)

    def compile(self, text: str, param: str) -> Structure:
        """ApiError 400 that names `param` for a grammar that cannot be followed."""
        try:
            check_bounds(text)
            return self._compile(text) if len(text) > _LARGEST_KEPT else self._compiled(text)
        except ValueError as fault:
            raise ApiError(400, f"{param} cannot be followed: {fault}", param=param) from None

    def _compile(self, text: str) -> Structure:
        with self._lock:
            tokens = self._tokens
        limits = llguidance.LLParserLimits(verbose_errors=False)
        matcher = llguidance.LLMatcher(tokens, text, log_level=0, limits=limits)
        if matcher.is_error():
            raise ValueError(_sentence(matcher.get_error()))
        unkept = tuple(map(_sentence, matcher.get_grammar_warnings()))
        return Structure(matcher, (self._vocab_size + 31) // 32, unkept)

    @cached_property
    def _tokens(self) -> llguidance.LLTokenizer:
        table = _Table(self._tokenizer, self._vocab_size, self._stop_ids)
        return llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(table), n_vocab=self._vocab_size, eos_token=self._stop_ids
        )


class _Table:
    """A tokenizer as llguidance reads one."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: list[int]) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = stop_ids[0], tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(token, skip_special=False) for token in range(vocab_size)]
        self.special_token_ids = sorted(tokenizer.special_ids)

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode(errors="replace"))


def _sentence(message: str) -> str:
    """llguidance's message without the place in our own grammar and the lines that it shows there."""
    message = message.partition("<backtrace>")[0]
    kept = [line.strip() for line in message.splitlines() if not re.match(r"\s*(\d+ \||\^)", line)]
    return _PLACE.sub("", " ".join(filter(None, kept)))[:500]
