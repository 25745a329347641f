"""From logits to the next token: greedy, temperature, top-k, top-p, min-p, repetition penalty.

V vocabulary. The filters act in the order in which they are named above, as most runtimes have it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
import numpy.typing as npt

from mobilemoe.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to choose: temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and repetition_penalty 1 are off.

    Raises UsageError naming the value and its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            self._check_kind(name, Real, "a number")
        for name in ("top_k", "seed"):
            if name != "seed" or self.seed is not None:
                self._check_kind(name, Integral, "a whole number")
        rules = (
            ("temperature", 0 <= self.temperature < float("inf"), "must be 0 or more"),
            ("top_k", self.top_k >= 0, "must be 0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "must be above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "must be between 0 and 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "must be above 0"),
            ("seed", self.seed is None or self.seed >= 0, "must be 0 or more"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise UsageError(f"{name} is {getattr(self, name)}, but {rule}")

    def _check_kind(self, name: str, kind: type, words: str) -> None:
        if not isinstance(getattr(self, name), kind):
            raise UsageError(f"{name} is {getattr(self, name)!r}, but must be {words}")


class Sampler:
    """Chooses the tokens of one sequence; `seen` are the ids that the repetition penalty knows from the start."""

    def __init__(self, sampling: Sampling, seen: Iterable[int] = ()) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)
        self._seen = set(seen)

    def choose(self, logits_V: npt.NDArray[np.float32]) -> int:
        """The next token; ties go to the lowest id. Raises UsageError where every logit is NaN."""
        scores_V = logits_V.astype(np.float64)
        scores_V[np.isnan(scores_V)] = -np.inf
        self._penalise(scores_V)
        token = int(scores_V.argmax())
        if scores_V[token] == -np.inf:
            raise UsageError("the model gave no usable logits: its weights hold NaN")
        if self._sampling.temperature > 0 and scores_V[token] < np.inf:  # infinity leaves nothing to draw
            with np.errstate(over="ignore"):  # a tiny temperature pushes all but the best to -infinity
                token = self._draw((scores_V - scores_V[token]) / self._sampling.temperature)
        self._seen.add(token)
        return token

    def _penalise(self, scores_V: npt.NDArray[np.float64]) -> None:
        """Divides positive and multiplies negative scores of ids already seen (CTRL, arXiv 1909.05858)."""
        if self._sampling.repetition_penalty != 1 and self._seen:
            seen = np.fromiter(self._seen, np.int64)
            penalty = self._sampling.repetition_penalty
            with np.errstate(over="ignore", divide="ignore"):
                scores_V[seen] = np.where(scores_V[seen] > 0, scores_V[seen] / penalty, scores_V[seen] * penalty)

    def _draw(self, scores_V: npt.NDArray[np.float64]) -> int:
        order_V = np.argsort(-scores_V, kind="stable")
        if self._sampling.top_k:
            order_V = order_V[: self._sampling.top_k]
        weights = np.exp(scores_V[order_V] - scores_V[order_V[0]])
        shares = weights / weights.sum()
        before = np.cumsum(shares) - shares  # what stands ahead of each: the first is always kept
        kept = (before < self._sampling.top_p) & (shares >= self._sampling.min_p * shares[0])
        shares = np.where(kept, shares, 0.0)
        return int(order_V[self._random.choice(len(shares), p=shares / shares.sum())])
