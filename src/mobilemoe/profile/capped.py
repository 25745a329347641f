"""Measures decoding under a limit of memory, with several strengths of the preference for experts in memory.

Each measurement is made in a process of its own, since the limit is one for a whole process.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from mobilemoe.errors import UsageError
from mobilemoe.profile.child import measure_in_child

BEFORE, DECODED = 512, 96  # tokens of the prompt, and those that are decoded after it
ROUNDS = 5
_CHILD = "from mobilemoe.profile.capped import child_main\nchild_main()\n"


@dataclass(frozen=True)
class Decoding:
    """Decoding with one strength of the prior: its speed, the bytes of experts read for a token, the share of visited
    experts that were in memory, and how many of all experts there was room for.
    """

    strength: float
    tokens_per_second: float
    bytes_per_token: float
    hit_rate: float
    places: int
    experts: int


def decode_speeds(
    folder: Path,
    strengths: Sequence[float],
    max_memory: int,
    ids: Sequence[int],
    threads: int | None,
    on_round: Callable[[int], None],
) -> list[Decoding]:
    """Each strength in turn decodes the same tokens, the last DECODED of `ids`, at most half of them; medians of the
    rounds. UsageError where the limit is too low, or so high that all experts fit.

    ids: at least two; of more than BEFORE + DECODED the first.
    """
    ids = ids[: BEFORE + DECODED]
    before = len(ids) - min(DECODED, len(ids) // 2)
    found: dict[float, list[Decoding]] = {strength: [] for strength in strengths}
    for done in range(ROUNDS):
        for strength in strengths:
            job = {"folder": str(folder.absolute()), "strength": strength, "max_memory": max_memory}
            job |= {"before": list(ids[:before]), "decoded": list(ids[before:]), "threads": threads}
            made = Decoding(**measure_in_child(_CHILD, job, "decoding under a limit of memory", UsageError))
            if made.places == made.experts:
                size = f"{max_memory / 1e6:,.0f} MB"
                raise UsageError(f"--max-memory of {size} has room for all {made.experts} experts: take a lower one")
            found[strength].append(made)
        on_round(done + 1)
    return [
        Decoding(
            strength,
            median(each.tokens_per_second for each in rounds),
            median(each.bytes_per_token for each in rounds),
            median(each.hit_rate for each in rounds),
            min(each.places for each in rounds),
            rounds[0].experts,
        )
        for strength, rounds in found.items()
    ]


def child_main() -> None:
    """Runs in the new process: reads a job from standard input, writes a Decoding as JSON to standard output."""
    from mobilemoe.engine import Engine
    from mobilemoe.engine.expert_use import hit_rate
    from mobilemoe.routing import Routing

    job = json.load(sys.stdin)
    routing = Routing(cache_prior=job["strength"])
    engine = Engine(job["folder"], threads=job["threads"], max_memory=job["max_memory"], routing=routing)
    session = engine.session(len(job["before"]) + len(job["decoded"]))
    session.append(job["before"])
    before, began = engine.native.expert_use, time.perf_counter()
    for token in job["decoded"]:
        session.append([token])
    seconds, use = time.perf_counter() - began, engine.native.expert_use
    made = {name: count - before[name] for name, count in use.items()}
    rate, decoded = hit_rate(made), len(job["decoded"])
    assert rate is not None  # every token of a mixture visits experts
    speed, read = decoded / seconds, made["bytes_read"] / decoded
    result = Decoding(job["strength"], speed, read, rate, use["places"], use["experts"])
    print(json.dumps(asdict(result)))
