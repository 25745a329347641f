"""Measures how fast several texts are continued at once, one token of each in a pass."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

from mobilemoe.engine import Engine
from mobilemoe.profile.speed import DECODED

PROMPT = 64  # tokens before the first one that is decoded, if the context has room


def measure_batch(engine: Engine, ids: Sequence[int], counts: Sequence[int], repeats: int) -> dict[int, float]:
    """Tokens per second, summed over the texts, by how many of them are decoded at once: the median of the repeats.

    The counts take turns. Each decodes the same texts, taken one after another from `ids`: first some, then the next.
    """
    prompt = max(1, min(PROMPT, engine.context - DECODED))
    decoded = min(DECODED, engine.context - prompt)
    long = prompt + decoded
    texts = [[ids[(text * long + at) % len(ids)] for at in range(long)] for text in range(max(counts))]
    sessions = [engine.session(long) for _ in texts]
    for session, text in zip(sessions, texts, strict=True):
        session.append(text[:prompt])
    speeds: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(repeats):
        for count in counts:
            whole = len(texts) // count * count  # what is left over would be a smaller batch
            began = time.perf_counter()
            for first in range(0, whole, count):
                batch = [*zip(sessions, texts, strict=True)][first : first + count]
                for at in range(prompt, long):
                    engine.forward([(session, text[at : at + 1], 1) for session, text in batch])
            speeds[count].append(whole * decoded / (time.perf_counter() - began))
            for session in sessions:
                session.truncate(prompt)
    return {count: median(found) for count, found in speeds.items()}
