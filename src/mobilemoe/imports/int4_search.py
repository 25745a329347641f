"""Finds the INT4 that fp16 weights were made from, so that they need not be rounded a second time.

Legend: G groups of 32, N inputs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from mobilemoe.checkpoint import int4
from mobilemoe.config import GROUP_SIZE

_BLOCK = 2**17  # groups searched at once


def find_int4(w: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16]] | None:
    """Nibbles [..., N/2] and scales [..., N/32] whose products, rounded to fp16, are `w` [..., N]; None if none are.

    Where several are, as for groups of even values, the finest scale is taken: rounding uses the whole of -8 to 7.
    """
    if w.shape[-1] % GROUP_SIZE:
        return None
    groups = w.reshape(-1, GROUP_SIZE)
    q, scale = np.zeros(groups.shape, np.int8), np.zeros(len(groups), np.float16)
    for start in range(0, len(groups), _BLOCK):
        block = slice(start, start + _BLOCK)
        if not _search(groups[block], q[block], scale[block]):
            return None
    return int4.pack(q.reshape(w.shape)), scale.reshape(*w.shape[:-1], -1)


def _search(w_GN: npt.NDArray[np.float32], q_GN: npt.NDArray[np.int8], scale_G: npt.NDArray[np.float16]) -> bool:
    """Fills in values and scales of the groups; whether all were found. Groups of zeros keep theirs."""
    left = np.flatnonzero(w_GN.any(axis=1))
    for tried in _candidates(np.abs(w_GN).max(axis=1)):
        if not left.size:
            return True
        scale, w = tried[left], w_GN[left]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            values = np.rint(w / scale[:, None].astype(np.float32))
            products = (values * scale[:, None].astype(np.float32)).astype(np.float16)
        fits = ((products == w) & (values >= -8) & (values <= 7)).all(axis=1)
        q_GN[left[fits]], scale_G[left[fits]] = values[fits].astype(np.int8), scale[fits]
        left = left[~fits]
    return not left.size


def _candidates(largest_G: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float16]]:
    """Scales under which the largest weight of a group is 8, 7, ... 1 of them, give or take its rounding."""
    for steps in range(8, 0, -1):
        nearest = (largest_G / np.float32(steps)).astype(np.float16)
        yield nearest
        yield np.nextafter(nearest, np.float16(0))
        yield np.nextafter(nearest, np.float16(np.inf))
