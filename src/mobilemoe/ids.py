"""Checks of token ids, which callers may give as any whole numbers, before anything is computed."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence

from mobilemoe.errors import UsageError


def check_ids(ids: Iterable[int], vocab_size: int, context: int, *, behind: int = 0) -> list[int]:
    """`ids` as plain ints. `behind`: the number of tokens that precede them in the same context.

    Raises UsageError if there are none, if one is outside the vocabulary, or if they do not fit the context.
    """
    checked: list[int] = []
    for token in ids:
        try:
            checked.append(operator.index(token))
        except TypeError:
            raise UsageError(f"token id {token!r} is not a whole number") from None
        if not 0 <= checked[-1] < vocab_size:
            raise UsageError(f"token id {token} is outside the vocabulary of {vocab_size}")
    if not checked:
        raise UsageError("there are no token ids: give at least one")
    if behind + len(checked) > context:
        what = f"{behind} tokens and {len(checked)} more make" if behind else "the prompt has"
        raise UsageError(f"{what} {behind + len(checked)} tokens, more than the context of {context}")
    return checked


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the longest common prefix."""
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
