"""Measures what sampling costs: the time from the logits of a token to the choice of the next one.

V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from mobilemoe.engine import Engine
from mobilemoe.engine.member import native_sampler
from mobilemoe.engine.native import our_errors
from mobilemoe.sampling import Sampling

PROMPT = 512  # tokens before the first choice, if the context has room; penalties count them as seen
STEPS = 16  # choices of each mode in one repeat, each behind another token


@dataclass(frozen=True)
class Mode:
    """A way to choose tokens; `logprobs` and `is_masked` as a client or a grammar would ask for them."""

    sampling: Sampling
    logprobs: int | None = None
    is_masked: bool = False  # every second token is forbidden


_PENALTIES = Sampling(temperature=0.7, repetition_penalty=1.1, presence_penalty=0.1, frequency_penalty=0.1)
MODES: Mapping[str, Mode] = {
    "greedy": Mode(Sampling()),
    "temperature 0.7": Mode(Sampling(temperature=0.7)),
    "top-k 40": Mode(Sampling(temperature=0.7, top_k=40)),
    "top-p 0.9": Mode(Sampling(temperature=0.7, top_p=0.9)),
    "min-p 0.05": Mode(Sampling(temperature=0.7, min_p=0.05)),
    "penalties": Mode(_PENALTIES),
    "logit bias": Mode(Sampling(temperature=0.7, logit_bias=dict.fromkeys(range(8), 1.0))),
    "20 logprobs": Mode(Sampling(temperature=0.7), logprobs=20),
    "grammar mask": Mode(Sampling(temperature=0.7), is_masked=True),
    "all together": Mode(replace(_PENALTIES, top_p=0.9, min_p=0.05), logprobs=20, is_masked=True),
}


def measure_sampling(engine: Engine, ids: Sequence[int], repeats: int) -> dict[str, float]:
    """The microseconds a token of each of MODES: the median. Modes take turns, each right behind a forward pass.

    `ids` are the tokens of the text, at least as many as the context or PROMPT + STEPS.
    """
    prompt = max(1, min(PROMPT, engine.context - STEPS, len(ids) - STEPS))
    session = engine.session(min(engine.context, prompt + STEPS))
    session.append(ids[:prompt])
    samplers = {name: native_sampler(mode.sampling, engine.vocab_size) for name, mode in MODES.items()}
    for sampler in samplers.values():
        sampler.see(list(ids[:prompt]))
    bits_V = np.full((engine.vocab_size + 31) // 32, 0x55555555, np.uint32)
    taken: dict[str, list[float]] = {name: [] for name in MODES}
    for _ in range(repeats):
        for token in range(prompt - 1, prompt - 1 + STEPS):
            for name, mode in MODES.items():
                session.truncate(token)
                logits_V = session.append([ids[token]])
                top, allowed_V = mode.logprobs or 0, bits_V if mode.is_masked else None
                text = (samplers[name], logits_V[None], mode.logprobs is not None, top, allowed_V, None)
                with our_errors():
                    began = time.perf_counter()
                    engine.native.choose([text])
                    taken[name].append(time.perf_counter() - began)
    return {name: median(seconds) * 1e6 for name, seconds in taken.items()}
