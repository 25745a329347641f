"""What changes of routing cost in bits per byte, and what they save: experts to be read, and time.

The points of quality are kept in a file as they are found, so that a run that was stopped goes on. Speeds are measured
anew each time, all in turn, as ratios.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, get_args

from mobilemoe.config import ModelConfig
from mobilemoe.errors import DataError
from mobilemoe.evaluate.compare.bits_per_byte import score_file
from mobilemoe.files import read_json, sha256_file, write_json
from mobilemoe.load import Model, load
from mobilemoe.routing import Routing, Skip

PROMPT = 512  # tokens of the prompts whose speed is measured
ROUNDS = 5


@dataclass(frozen=True)
class Grid:
    """The values that are tried: experts in an imitated cache, strengths of the prior, and shares that are computed."""

    cached_experts: tuple[int, ...]
    strengths: tuple[float, ...]
    capacities: tuple[float, ...]

    def routings(self, config: ModelConfig) -> list[Routing]:
        """All points, beginning with the model's own routing."""
        fewer = range(config.num_experts_per_tok - 1, 0, -1)
        found = [Routing(), *(Routing(experts_per_token=active) for active in fewer)]
        found += [Routing(capacity=share, skip=skip) for skip in get_args(Skip) for share in self.capacities]
        for places in self.cached_experts:
            found += [Routing(cached_experts=places, cache_prior=strength) for strength in self.strengths]
        return found


@dataclass(frozen=True)
class Point:
    """One way to route: bits per byte of the text, its perplexity for each token, the share of chosen experts that the
    imitated cache did not have, and the share of pairs that were skipped; None where there is none.
    """

    routing: Routing
    bits_per_byte: float
    perplexity: float
    miss_rate: float | None
    skipped: float | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_quality(
    name: str, text: Path, window: int | None, routings: Sequence[Routing], kept: Path, threads: int | None,
    on_point: Callable[[int, int, str], None],
) -> list[Point]:  # fmt: skip
    """A point for each routing, those that the file `kept` has for the same model, text and window from there."""
    found, digest = _read_kept(kept), sha256_file(text)
    points = []
    for done, routing in enumerate(routings):
        on_point(done, len(routings), "ways to route, scored")
        model = load(name, threads=threads, routing=routing)
        assert model.engine  # load gives the native one
        key = f"{model.engine.fingerprint} {digest} {window} {sorted(asdict(routing).items())}"
        if key not in found:
            found[key] = asdict(_score(model, text, window, routing))
            write_json(kept, found)
        points.append(Point(**{**found[key], "routing": routing}))
    on_point(len(routings), len(routings), "ways to route, scored")
    return points


def identity(model: Model, text: Path, window: int | None, routings: Sequence[Routing], max_memory: int | None) -> str:
    """The same for two calls that find and measure the same."""
    assert model.engine
    asked = [model.engine.fingerprint, sha256_file(text), window, [asdict(each) for each in routings], max_memory]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _score(model: Model, text: Path, window: int | None, routing: Routing) -> Point:
    score = score_file(model, text, window=window)["all"]
    assert model.engine
    use = model.engine.routing_use
    return Point(
        routing,
        score.bits_per_byte,
        2 ** (score.bits / score.tokens),
        use.misses / (use.hits + use.misses) if routing.cached_experts else None,
        use.skipped / use.pairs if use.pairs else None,  # a window of two tokens is no prompt
    )


def _read_kept(path: Path) -> dict[str, Any]:
    return dict(read_json(path, DataError)) if path.exists() else {}


def prompt_speeds(
    name: str, routings: Iterable[Routing], ids: Sequence[int], threads: int | None, on_round: Callable[[int], None]
) -> dict[Routing, float]:
    """How many times as fast as by the model's own routing each reads a prompt: the median of the rounds' ratios."""
    everyone = [Routing(), *(routing for routing in routings if routing != Routing())]
    engines = [load(name, threads=threads, routing=routing).engine for routing in everyone]
    ratios: dict[Routing, list[float]] = {routing: [] for routing in everyone}
    for done in range(ROUNDS + 1):  # of which the first warms up
        seconds = []
        for engine in engines:
            assert engine
            session = engine.session(len(ids))
            began = time.perf_counter()
            session.append(ids)
            seconds.append(time.perf_counter() - began)
        for routing, each in zip(everyone, seconds, strict=True):
            ratios[routing] += [seconds[0] / each] if done else []
        on_round(done)
    return {routing: median(found) for routing, found in ratios.items()}
