"""Second implementations of the two changes of routing, slow and from their papers alone, for `reference_logits`."""

from __future__ import annotations

import math

import numpy as np

from reference import Routes, Weights, ranked, route, weighed

LEAST = 8  # pairs that an expert always takes: no capacity is smaller


class CachePrior:
    """Cache-prior re-ranking (arXiv 2412.00099), token by token, each layer with an LRU cache of `places` experts."""

    def __init__(self, strength: float, always_top: int, places: int) -> None:
        self.strength, self.always_top, self.places = strength, always_top, places
        self.ranges: dict[str, list[float]] = {}
        self.caches: dict[str, list[int]] = {}
        self.hits = self.misses = 0

    def __call__(self, weights: Weights, stem: str, logits_TE: np.ndarray) -> Routes:
        return [self.choose(weights, stem, logits) for logits in logits_TE]

    def choose(self, weights: Weights, stem: str, logits: np.ndarray) -> list[tuple[int, float]]:
        ranges, cache = self.ranges.setdefault(stem, []), self.caches.setdefault(stem, [])
        ranges.append(max(logits) - min(logits))
        raised = logits.copy()
        for expert in cache:
            raised[expert] += self.strength * sum(ranges) / len(ranges)
        chosen = ranked(weights, stem, logits)[: self.always_top]
        others = [expert for expert in ranked(weights, stem, raised) if expert not in chosen]
        chosen += others[: weights.config["num_experts_per_tok"] - len(chosen)]
        self.hits += sum(expert in cache for expert in chosen)
        self.misses += sum(expert not in cache for expert in chosen)
        self.caches[stem] = (chosen + [expert for expert in cache if expert not in chosen])[: self.places]
        return weighed(weights, logits, chosen)


class Capacity:
    """Batch-prioritised routing (arXiv 2106.05974) of all tokens as one batch; `at_random` orders the pairs anyhow."""

    def __init__(self, share: float, at_random: bool) -> None:
        self.share, self.at_random = share, at_random
        self.pairs = self.skipped = 0

    def __call__(self, weights: Weights, stem: str, logits_TE: np.ndarray) -> Routes:
        chosen, (tokens, experts) = route(weights, stem, logits_TE), logits_TE.shape
        active = len(chosen[0])
        capacity = max(LEAST, math.floor(self.share * active * tokens / experts + 0.5))
        first = sorted(range(tokens), key=lambda token: -max(weight for _, weight in chosen[token]))
        order = [(token, slot) for slot in range(active) for token in first]
        if self.at_random:
            layer = int(stem.split(".")[2])
            order.sort(key=lambda pair: scrambled((layer << 32) + pair[0] * active + pair[1] + 1))
        kept: list[tuple[int, int]] = []
        load = [0] * experts
        for token, slot in order:
            expert = chosen[token][slot][0]
            if load[expert] < capacity:
                load[expert] += 1
                kept.append((token, slot))
        self.pairs += len(order)
        self.skipped += len(order) - len(kept)
        return [[pair for slot, pair in enumerate(chosen[token]) if (token, slot) in kept] for token in range(tokens)]


def scrambled(x: int) -> int:
    """The last steps of splitmix64."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31
