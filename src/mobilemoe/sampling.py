"""From logits to the next token: bias, penalties, then greedy choice or temperature, top-k, top-p and min-p.

Legend: V vocabulary. The steps are applied in this order, as in most runtimes. The native engine has
its own sampler with the same rules; `Sampler` here serves the PyTorch model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilemoe.errors import UsageError

MAX_SEED = 2**64 - 1
_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The rules for choosing a token. Temperature 0 is greedy; top_k 0, top_p 1, min_p 0, repetition_penalty 1 and 0
    for the other penalties mean off.

    `repetition_penalty` divides positive and multiplies negative logits of ids seen, the prompt's included;
    `presence_penalty` is subtracted once, `frequency_penalty` once per occurrence, from logits of generated ids.
    `logit_bias` is added to the logits of its ids. Raises UsageError naming the value and its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in _NUMBERS:
            self._check_kind(name, Real, "a number")
        for name in ("top_k", "seed"):
            if name != "seed" or self.seed is not None:
                self._check_kind(name, Integral, "a whole number")
        self._check_kind("logit_bias", Mapping, "a mapping from token ids to numbers")
        rules = (
            ("temperature", 0 <= self.temperature < math.inf, "must be 0 or more"),
            ("top_k", self.top_k >= 0, "must be 0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "must be above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "must be between 0 and 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "must be above 0"),
            ("presence_penalty", math.isfinite(self.presence_penalty), "must be finite"),
            ("frequency_penalty", math.isfinite(self.frequency_penalty), "must be finite"),
            ("seed", self.seed is None or 0 <= self.seed <= MAX_SEED, f"must be from 0 to {MAX_SEED}"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise UsageError(f"{name} is {getattr(self, name)}, but {rule}")
        given: Any = self.logit_bias  # the annotation is not enforced
        for token, bias in given.items():
            if not (isinstance(token, Integral) and isinstance(bias, Real) and math.isfinite(bias)):
                raise UsageError(f"logit_bias has {token!r}: {bias!r}, but must be of token ids and finite numbers")

    def check_for(self, vocab_size: int, logprobs: int | None) -> None:
        """Raises UsageError unless the bias, and the number of requested log-probabilities, fit the vocabulary."""
        if unknown := [token for token in self.logit_bias if not 0 <= token < vocab_size]:
            raise UsageError(f"logit_bias has token id {unknown[0]}, outside the vocabulary of {vocab_size}")
        if logprobs is not None and not (isinstance(logprobs, int) and 0 <= logprobs <= vocab_size):
            raise UsageError(f"logprobs is {logprobs!r}, but must be a whole number from 0 to {vocab_size}")

    def _check_kind(self, name: str, kind: type, words: str) -> None:
        if not isinstance(getattr(self, name), kind):
            raise UsageError(f"{name} is {getattr(self, name)!r}, but must be {words}")


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token and, if requested, log-probabilities in nats under the model itself: before bias,
    penalties and temperature. `top` are the likeliest ids with theirs, best first. `experts`, if requested, are those
    of each layer in the pass that chose the token, best first."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    experts: tuple[tuple[int, ...], ...] = ()


class Sampler:
    """Chooses the tokens of one sequence; `seen` are ids that the repetition penalty counts from the start."""

    def __init__(self, sampling: Sampling, seen: Iterable[int] = ()) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)
        self._seen = set(seen)
        self._made: Counter[int] = Counter()

    def choose(self, logits_V: npt.NDArray[np.float32]) -> int:
        """The next token; ties go to the lowest id. Raises UsageError where every logit is NaN."""
        scores_V = logits_V.astype(np.float64)
        scores_V[np.isnan(scores_V)] = -np.inf
        self._change(scores_V)
        token = int(scores_V.argmax())
        if scores_V[token] == -np.inf:
            raise UsageError("the model gave no usable logits: its weights hold NaN")
        if self._sampling.temperature > 0 and scores_V[token] < np.inf:  # an infinite logit leaves nothing to sample
            with np.errstate(over="ignore"):  # a tiny temperature makes all but the largest -infinity
                token = self._draw((scores_V - scores_V[token]) / self._sampling.temperature)
        self._seen.add(token)
        self._made[token] += 1
        return token

    def _change(self, scores_V: npt.NDArray[np.float64]) -> None:
        """Applies the bias, then the penalty of CTRL (arXiv 1909.05858), then those of OpenAI's interface."""
        sampling = self._sampling
        for token, bias in sampling.logit_bias.items():
            scores_V[token] += bias
        if sampling.repetition_penalty != 1 and self._seen:
            seen = np.fromiter(self._seen, np.int64)
            penalty = sampling.repetition_penalty
            with np.errstate(over="ignore", divide="ignore"):
                scores_V[seen] = np.where(scores_V[seen] > 0, scores_V[seen] / penalty, scores_V[seen] * penalty)
        if sampling.presence_penalty or sampling.frequency_penalty:
            for token, times in self._made.items():
                scores_V[token] -= sampling.presence_penalty + times * sampling.frequency_penalty

    def _draw(self, scores_V: npt.NDArray[np.float64]) -> int:
        order_V = np.argsort(-scores_V, kind="stable")
        if self._sampling.top_k:
            order_V = order_V[: self._sampling.top_k]
        weights = np.exp(scores_V[order_V] - scores_V[order_V[0]])
        shares = weights / weights.sum()
        before = np.cumsum(shares) - shares  # the probability before each one; the first is always kept
        kept = (before < self._sampling.top_p) & (shares >= self._sampling.min_p * shares[0])
        shares = np.where(kept, shares, 0.0)
        return int(order_V[self._random.choice(len(shares), p=shares / shares.sum())])


def log_softmax(logits_TV: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Log-probabilities in nats, along the last axis."""
    shifted_TV = logits_TV.astype(np.float64)
    shifted_TV -= shifted_TV.max(axis=-1, keepdims=True)
    shifted_TV -= np.log(np.exp(shifted_TV).sum(axis=-1, keepdims=True))
    return shifted_TV


def with_logprobs(token: int, logits_V: npt.NDArray[np.float32], top: int) -> Choice:
    """The choice of `token` with its log-probability and those of the `top` likeliest ids."""
    logprobs_V = log_softmax(logits_V)
    best = np.argsort(-logprobs_V, kind="stable")[:top]
    return Choice(token, float(logprobs_V[token]), tuple((int(i), float(logprobs_V[i])) for i in best))
