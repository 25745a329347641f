"""Formats the numbers of a report."""

from __future__ import annotations

from collections.abc import Callable

from mobilemoe.scaling.optimum.optimum import Band


def band(value: Band, words: Callable[[float], str]) -> str:
    middle, low, high = map(words, value)
    return middle if low == high == middle else f"{middle} ({low} to {high})"


def count(billions: float) -> str:
    return f"{billions:.3g} B" if billions >= 1 else f"{1e3 * billions:.3g} M"


def size(value: float) -> str:
    return f"{value / 1e9:.3g} GB" if value >= 1e9 else f"{value / 1e6:.3g} MB"


def loss(value: float) -> str:
    return f"{value:.4f}"


def number(value: float) -> str:
    return f"{value:.4g}"
