"""Finds the INT4 that fp16 weights were made from, so that they need not be rounded a second time.

Legend: G groups of 32, N inputs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mobilemoe.checkpoint import int4
from mobilemoe.config import GROUP_SIZE

Floats = npt.NDArray[np.float32]
_BLOCK = 2**17  # groups searched at once


def find_int4(w: Floats) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16]] | None:
    """Nibbles [..., N/2] and scales [..., N/32] whose products, rounded to fp16, are `w` [..., N]; None if none are."""
    if w.shape[-1] % GROUP_SIZE:
        return None
    groups = w.reshape(-1, GROUP_SIZE)
    q, scale = np.zeros(groups.shape, np.int8), np.zeros(len(groups), np.float16)
    for start in range(0, len(groups), _BLOCK):
        block = slice(start, start + _BLOCK)
        if not _search(groups[block], q[block], scale[block]):
            return None
    return int4.pack(q.reshape(w.shape)), scale.reshape(*w.shape[:-1], -1)


def _search(w_GN: Floats, q_GN: npt.NDArray[np.int8], scale_G: npt.NDArray[np.float16]) -> bool:
    """Fills in values and scales of the groups; whether all were found. Groups of zeros keep theirs."""
    left = np.flatnonzero(w_GN.any(axis=1))
    for steps in range(8, 0, -1):  # rounding uses the whole of -8 to 7, so most groups are found at once
        left = left[~_fill(w_GN, q_GN, scale_G, left, np.full(len(left), steps))]
    # Few values may have a divisor in common by chance; where many do, a coarser scale was theirs.
    divisor = np.gcd.reduce(q_GN.astype(np.int64), axis=1)
    shared = np.flatnonzero((divisor > 1) & (np.count_nonzero(q_GN, axis=1) > GROUP_SIZE // 4))
    _fill(w_GN, q_GN, scale_G, shared, np.abs(q_GN[shared].astype(np.int64)).max(axis=1) // divisor[shared])
    return not left.size


def _fill(
    w_GN: Floats,
    q_GN: npt.NDArray[np.int8],
    scale_G: npt.NDArray[np.float16],
    groups: npt.NDArray[np.intp],
    steps: npt.NDArray[np.int64],
) -> npt.NDArray[np.bool_]:
    """Fills in those of `groups` whose largest weight is `steps` scales, give or take its rounding; says which."""
    w = w_GN[groups]
    nearest = (np.abs(w).max(axis=1, initial=0) / steps).astype(np.float16)
    found = np.zeros(len(groups), np.bool_)
    for scale in (nearest, np.nextafter(nearest, np.float16(0)), np.nextafter(nearest, np.float16(np.inf))):
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            values = np.rint(w / scale[:, None].astype(np.float32))
            products = (values * scale[:, None].astype(np.float32)).astype(np.float16)
        fits = ((products == w) & (values >= -8) & (values <= 7)).all(axis=1) & ~found
        q_GN[groups[fits]], scale_G[groups[fits]] = values[fits].astype(np.int8), scale[fits]
        found |= fits
    return found
