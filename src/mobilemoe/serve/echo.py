"""The log-probabilities of a prompt's own tokens, for completions that give it back (`echo`).

Legend: T tokens, V vocabulary.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from mobilemoe.load import Model
from mobilemoe.sampling import Choice, log_softmax

_PART = 64  # tokens in one call: others compute between two calls, and few logits are kept


async def read_back(model: Model, ids: Sequence[int], top: int) -> list[Choice]:
    """Each token of a prompt with its log-probability and those of the `top` likeliest ids; the first has none.

    Between two parts the caller may be cancelled.
    """
    engine = model.engine
    assert engine is not None, "the server runs on the native engine"
    session, choices = engine.session(len(ids)), [Choice(ids[0])]

    def read(part: Sequence[int], targets: Sequence[int]) -> list[Choice]:
        logprobs_TV = log_softmax(engine.forward([(session, part, len(part))]))
        found = []
        for target, logprobs_V in zip(targets, logprobs_TV, strict=True):
            best = np.argpartition(-logprobs_V, top)[:top]
            best = best[np.argsort(-logprobs_V[best], kind="stable")]
            found.append(Choice(target, float(logprobs_V[target]), tuple((int(i), float(logprobs_V[i])) for i in best)))
        return found

    for start in range(0, len(ids) - 1, _PART):
        targets = ids[start + 1 : start + 1 + _PART]
        choices += await asyncio.to_thread(read, ids[start : start + len(targets)], targets)
    return choices
