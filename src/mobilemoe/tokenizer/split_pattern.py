"""Checks that the regular expression by which a tokenizer splits text cannot take exponential time.

The expressions of real tokenizers are alternatives of runs of characters, in which only single characters of a class
repeat. Repeated groups of varying length are what makes an expression backtrack over a text again and again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from mobilemoe.errors import TokenizerError

_MAX_LENGTH = 4096
_MAX_REPEAT = 256  # {n} is unrolled by the library
# One item, and how often: a class (classes nest once, and have [:names:]), an escape, a bracket, any other character.
_ITEM = re.compile(
    r"(?P<set>\[\^?\]?(?:[^\[\]\\]|\\.|\[(?:[^\[\]\\]|\\.)*\])*\])"
    r"|(?P<escape>\\[pP]\{\^?\w+\}|\\x\{[0-9A-Fa-f]+\}|\\x[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}|\\[^1-9gkpPxu])"
    r"|(?P<open>\((?:\?(?:[=!:>]|<[=!]|[imsx-]+:))?)"
    r"|(?P<close>\))"
    r"|(?P<either>\|)"
    r"|(?P<one>[^\\\[\](){}|*+?])",
    re.DOTALL,
)
_REPEAT = re.compile(r"(?P<many>[*+]|\{\d*,\d*\})[?+]?|(?P<maybe>\?)[?+]?|\{(?P<count>\d+)\}")
_CHARACTERS = "aA1 \n.'_é中"
_SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048)
_SECONDS = 0.1  # of processor time; a normal expression takes a hundredth of it
_TRIES = 3  # a busy machine can stretch the processor time of one, if not fivefold


def check_pattern(pattern: str) -> None:
    """Raises TokenizerError for an expression unlike those of real tokenizers."""
    if len(pattern) > _MAX_LENGTH:
        raise TokenizerError(f"its split's expression has {len(pattern)} characters, more than {_MAX_LENGTH}")
    varies = [False]  # by open bracket, whether its content has no fixed length
    at = 0
    while at < len(pattern):
        item = _ITEM.match(pattern, at)
        if item is None:
            raise _unknown(pattern, at)
        at = item.end()
        if item.lastgroup == "open":
            varies.append(False)
            continue
        if item.lastgroup == "either":
            varies[-1] = True
            continue
        inner = False
        if item.lastgroup == "close":
            inner = varies.pop()
            if not varies:
                raise _unknown(pattern, item.start())
        repeat = _REPEAT.match(pattern, at)
        if repeat is not None:
            at = repeat.end()
            if max(map(int, re.findall(r"\d+", repeat[0])), default=0) > _MAX_REPEAT:
                raise TokenizerError(f"its split's expression repeats more than {_MAX_REPEAT} times")
            if inner and repeat["maybe"] is None:
                raise TokenizerError(
                    f"its split's expression repeats a group of varying length at character {item.start()}, "
                    "which can take for ever"
                )
        varies[-1] = varies[-1] or inner or (repeat is not None and repeat["count"] is None)
    if len(varies) != 1:
        raise _unknown(pattern, at)


def check_speed(split: Callable[[str], object], pattern: str) -> None:
    """Raises TokenizerError if `split` is slow on a run of some character, also of those in `pattern`."""
    named = "".join(dict.fromkeys(re.findall(r"[^\\\[\](){}|*+?^$]", pattern)))[:64]
    for character in dict.fromkeys(_CHARACTERS + named):
        for size in _SIZES:
            for end in ("", "\0 \0", f" {named}"):  # what the expression searches for may occur, but in another place
                if _is_slow(split, character * size + end):
                    raise TokenizerError(f"its split takes more than {_SECONDS} s for {size} times {character!r}")


def _is_slow(split: Callable[[str], object], text: str) -> bool:
    """Whether splitting takes more than _SECONDS in every try; beyond five times that, one is enough."""
    for _ in range(_TRIES):
        began = time.thread_time()
        split(text)
        taken = time.thread_time() - began
        if taken <= _SECONDS:
            return False
        if taken > 5 * _SECONDS:
            return True
    return True


def _unknown(pattern: str, at: int) -> TokenizerError:
    return TokenizerError(f"its split's expression is of no kind that is known here, from {pattern[at : at + 20]!r} on")
