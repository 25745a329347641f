"""Counts in sentences: "1 run", "2 runs", "1,000 models"."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """The number with the noun in its singular or plural, which is `plural` or the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
