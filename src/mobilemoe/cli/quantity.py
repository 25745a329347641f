"""Amounts as people write them: 1.5GB, 900MB, 300B."""

from __future__ import annotations

import math
import re

from mobilemoe.errors import UsageError

BYTES = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
COUNTS = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def quantity(option: str, text: str | None, units: dict[str, float], example: str) -> float | None:
    """The number above 0 that `text` says, followed by one of `units`; UsageError if it says none."""
    if text is None:
        return None
    matched = _NUMBER.fullmatch(text)
    number = math.inf if matched is None else float(matched[1]) * units.get(matched[2].upper(), math.inf)
    if not 0 < number < math.inf:
        raise UsageError(f"{option} is {text!r}, but must be a positive number, such as {example}")
    return number
