"""What guessed tokens are worth on this machine: a text written with them and without, by turns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from mobilemoe.engine import Drafts, Engine, Speculate
from mobilemoe.load import Model
from mobilemoe.profile.tokens import tokens_for

PROMPT, WRITTEN = 256, 128  # tokens


@dataclass(frozen=True)
class Guesses:
    """Tokens per second, medians of the repeats, with guesses and without; and what became of the guesses."""

    speed: float
    plain_speed: float
    drafts: Drafts

    def values(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {"tok_s": self.speed, "plain_tok_s": self.plain_speed, **self.drafts._asdict()}


def measure_guesses(model: Model, repeats: int, *, dummy: bool) -> Guesses | None:
    """Continues a text by the likeliest tokens; None where nothing is guessed, no text can be read, or has no room."""
    engine = model.engine
    if engine is None or engine.speculate == "off" or engine.context < PROMPT + WRITTEN:
        return None
    tokens = tokens_for(model, PROMPT, dummy=dummy)
    if not tokens.is_text:
        return None
    how = engine.speculate
    before = engine.drafts
    seconds: dict[Speculate, list[float]] = {"off": [], how: []}
    try:
        for _ in range(repeats):
            for engine.speculate, found in seconds.items():
                found.append(_seconds_per_token(engine, tokens.ids))
    finally:
        engine.speculate = how
    counts = Drafts(*(now - then for now, then in zip(engine.drafts, before, strict=True)))
    return Guesses(1 / median(seconds[how]), 1 / median(seconds["off"]), counts)


def _seconds_per_token(engine: Engine, prompt: Sequence[int]) -> float:
    session = engine.session(PROMPT + WRITTEN)
    session.append(prompt[:-1])
    began = time.perf_counter()
    engine.generate_ids(prompt, max_new_tokens=WRITTEN, session=session)
    return (time.perf_counter() - began) / WRITTEN
