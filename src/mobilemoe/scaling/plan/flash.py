"""Models larger than memory: what does not fit of the routed experts is read from flash while a token waits for it.

All else is in memory: attention, embedding, routers, shared experts, keys and values. A token takes as long as the
slower of two things that go on at once, computing (from memory) and reading. See docs/small-memory.md.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Share of visited experts that are in memory by the share of all experts for which there is room: nano (18 experts,
# top-4), texts that it was not trained on, least frequently used with forgetting (docs/small-memory.md).
NANO_HITS = ((0.0, 0.0), (0.10, 0.15), (0.23, 0.37), (0.35, 0.54), (0.50, 0.73), (0.75, 0.95), (1.0, 1.0))
ASSUMED_BANDWIDTH = 1e9  # bytes/s, where a device's flash was not measured
PASS_TOKENS = 512  # of a prompt that are computed together; each missing expert is read once for them


class Storage(NamedTuple):
    """What the speeds of a model larger than memory depend on besides the model.

    bandwidth: bytes/s of flash. process_weights: bytes of the process for each byte of weights. margin: what speeds
    are multiplied by for the device's error.
    """

    bandwidth: float = ASSUMED_BANDWIDTH
    process_weights: float = 1.0
    margin: float = 1.0


def hit_rate(held: Array) -> Array:
    """The share of visited experts that are in memory, by the share of them for which there is room: nano's."""
    room, hits = zip(*NANO_HITS, strict=True)
    rates: Array = np.interp(held, room, hits)
    return rates


def decode_speed(whole: Array, held: Array, visited: Array, bandwidth: float) -> Array:
    """Tokens/s of models that have `whole` with all in memory, where a token visits so many bytes of experts."""
    missed = (1 - hit_rate(held)) * visited
    read: Array = np.divide(bandwidth, missed, out=np.full(len(missed), np.inf), where=missed > 0)
    speed: Array = np.minimum(whole, read)
    return speed


def prompt_seconds(whole: Array, held: Array, routed: Array, passes: Array, bandwidth: float) -> Array:
    """Seconds of a prompt that takes `whole` with all in memory: each pass reads the experts that are not held."""
    seconds: Array = np.maximum(whole, passes * (1 - held) * routed / bandwidth)
    return seconds
