"""Measures tokens per second: prefill of prompts of several lengths, and decoding after them.

Models take turns, length by length, so that other programs disturb all of them alike.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from mobilemoe import accounting
from mobilemoe.engine import Engine
from mobilemoe.engine.expert_use import hit_rate
from mobilemoe.profile.machine import Machine

DECODED = 32  # tokens decoded in one measurement
WARM_UP = 512  # tokens computed before anything is measured
KV_BITS = {"int8": 8, "f16": 16, "f32": 32}


@dataclass
class Subject:
    """A model that is measured, the ids that it gets, and the seconds per token of each point."""

    name: str
    engine: Engine
    ids: Sequence[int]
    prefill: dict[int, list[float]] = field(default_factory=dict)
    decode: dict[int, list[float]] = field(default_factory=dict)
    visits: Counter[str] = field(default_factory=Counter)  # of experts while decoding, by ExpertUse's names

    def has_room(self, tokens: int) -> bool:
        return tokens <= self.engine.context

    def prefill_speed(self, tokens: int) -> float:
        """Tokens per second: the median of the repeats."""
        return 1 / median(self.prefill[tokens])

    def decode_speed(self, depth: int) -> float:
        return 1 / median(self.decode[depth])

    def hit_rate(self) -> float | None:
        """The share of the experts that decoding visited which were in memory; None if it visited none that counts."""
        return hit_rate(self.visits)

    def read_bytes(self) -> float | None:
        """Bytes of experts that a decoded token read from the file; None if nothing was decoded."""
        decoded = DECODED * sum(map(len, self.decode.values()))
        return self.visits["bytes_read"] / decoded if decoded else None

    def mfu(self, tokens: int, machine: Machine) -> float | None:
        """The share of the int8 peak that a prefill reaches; None if it is unknown, for fp32 activations, and with a
        capacity, by which not all is computed."""
        if machine.multiply_adds_per_s is None or self.engine.native.fp32 or self.engine.routing.capacity is not None:
            return None
        products = accounting.prefill_flops(self.engine.config, tokens) / 2
        return products * self.prefill_speed(tokens) / tokens / machine.multiply_adds_per_s

    def mbu(self, depth: int, machine: Machine) -> float | None:
        """The share of the read bandwidth that decoding uses, for active weights and the KV cache at `depth`."""
        if machine.bytes_per_s is None:
            return None
        bits = KV_BITS[self.engine.native.kv]
        read = accounting.decode_bytes(self.engine.config, depth + DECODED // 2, bits)
        return read * self.decode_speed(depth) / machine.bytes_per_s


def measure(
    subjects: Sequence[Subject],
    lengths: Sequence[int],
    depths: Sequence[int],
    repeats: int,
    on_point: Callable[[str], None] = lambda what: None,
) -> None:
    """Adds `repeats` measured times for each point that fits the context; `on_point` is told about each.

    A depth of 0 means one token. Decoding continues with the given ids, not with the model's own choice.
    """
    for subject in subjects:
        count = min(WARM_UP, subject.engine.context - 1)
        subject.engine.session(count).append(subject.ids[:count])
    for _ in range(repeats):
        for length in sorted({*lengths, *depths}):
            for subject in subjects:
                _measure_point(subject, length, length in lengths, length in depths)
                on_point(f"{subject.name}: {length} tokens")


def _measure_point(subject: Subject, length: int, with_prefill: bool, with_decode: bool) -> None:
    start = max(length, 1)
    with_prefill = with_prefill and subject.has_room(start)
    with_decode = with_decode and subject.has_room(start + DECODED)
    if not (with_prefill or with_decode):
        return
    session = subject.engine.session(start + DECODED * with_decode)
    began = time.perf_counter()
    session.append(subject.ids[:start])
    if with_prefill:
        subject.prefill.setdefault(length, []).append((time.perf_counter() - began) / start)
    if with_decode:
        before = subject.engine.native.expert_use
        began = time.perf_counter()
        for token in subject.ids[start : start + DECODED]:
            session.append([token])
        subject.decode.setdefault(length, []).append((time.perf_counter() - began) / DECODED)
        subject.visits.update(subject.engine.native.expert_use)
        subject.visits.subtract(before)
