"""Second implementations of the two changes of routing, slow and from their papers alone, for `reference_logits`."""

from __future__ import annotations

import math

import numpy as np

from reference import Routes, Weights, ranked, route, weighed


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
    """The share of all pairs with the largest weights ("pair"), as many of any ("random"), or batch-prioritised routing
    ("token", arXiv 2106.05974), of all tokens as one batch."""

    def __init__(self, share: float, skip: str) -> None:
        self.share, self.skip = share, skip
        self.pairs = self.skipped = 0

    def __call__(self, weights: Weights, stem: str, logits_TE: np.ndarray) -> Routes:
        chosen, (tokens, experts) = route(weights, stem, logits_TE), logits_TE.shape
        active = len(chosen[0])
        pairs = [(token, slot) for token in range(tokens) for slot in range(active)]
        if self.skip == "token":
            kept = self.served(chosen, experts, max(1, math.floor(self.share * len(pairs) / experts + 0.5)))
        else:
            layer = int(stem.split(".")[2])
            if self.skip == "random":
                pairs.sort(key=lambda pair: -scrambled((layer << 32) + pair[0] * active + pair[1] + 1))
            else:
                pairs.sort(key=lambda pair: -chosen[pair[0]][pair[1]][1])
            kept = pairs[: math.floor(self.share * len(pairs) + 0.5)]
        self.pairs += len(pairs)
        self.skipped += len(pairs) - len(kept)
        return [[pair for slot, pair in enumerate(chosen[token]) if (token, slot) in kept] for token in range(tokens)]

    def served(self, chosen: Routes, experts: int, capacity: int) -> list[tuple[int, int]]:
        first = sorted(range(len(chosen)), key=lambda token: -max(weight for _, weight in chosen[token]))
        kept: list[tuple[int, int]] = []
        load = [0] * experts
        for slot in range(len(chosen[0])):
            for token in first:
                expert = chosen[token][slot][0]
                if load[expert] < capacity:
                    load[expert] += 1
                    kept.append((token, slot))
        return kept


def scrambled(x: int) -> int:
    """The high bits of the last steps of splitmix64."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return (x ^ x >> 31) >> 40
