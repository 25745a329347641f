"""Token ids as people give them: any whole numbers, checked before anything is computed."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence

from mobilemoe.errors import UsageError


def check_ids(ids: Iterable[int], vocab_size: int, context: int, *, behind: int = 0) -> list[int]:
    """`ids` as plain ints; UsageError if there are none, one that cannot be, or more than fit behind others."""
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
    """How many ids at the beginning are the same."""
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
