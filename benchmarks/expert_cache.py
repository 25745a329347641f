"""Which experts to keep in memory where there is room for some: rules of caches on the routing of real text.

    python benchmarks/expert_cache.py MODEL TEXTS.jsonl

Each line of the file is an object with a "text". The last line is JSON: hit rates by share of the experts.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

import mobilemoe

SHARES = (0.1, 0.23, 0.35, 0.5, 0.75, 0.9)
Steps = list[list[int]]  # the experts that one layer visits for one token, token by token, layer by layer

Rank = Callable[[int, int], float]  # (step, expert) -> of those in memory, the expert of the lowest rank goes
Rule = Callable[[Steps, int], Rank]  # (steps, layers) -> a rank that is asked once for each visit, in order


def trace(model: mobilemoe.Model, text: str, most: int) -> Steps:
    """The experts of each token and layer; expert e of layer l is number l * experts + e."""
    engine, config = model.engine, model.config
    assert engine is not None
    ids = model.encode(text)[: min(most, engine.context)]
    session = engine.session(len(ids))
    chosen_TLA = np.zeros((len(ids), config.num_hidden_layers, config.num_experts_per_tok), np.int32)
    engine.forward([(session, ids, 1)], {session: chosen_TLA})
    offsets_L1 = np.arange(config.num_hidden_layers)[:, None] * config.num_local_experts
    steps: Steps = (chosen_TLA + offsets_L1).reshape(-1, config.num_experts_per_tok).tolist()
    return steps


def lru(steps: Steps, layers: int) -> Rank:
    return lambda step, expert: step


def lfu(half_life: float) -> Rule:
    """A use counts half after `half_life` tokens."""

    def rule(steps: Steps, layers: int) -> Rank:
        uses: dict[int, float] = {}

        def rank(step: int, expert: int) -> float:
            # The logarithm of the sum of 2^age, which itself would not fit into a float.
            uses[expert] = float(np.logaddexp2(uses.get(expert, -np.inf), step / layers / half_life))
            return uses[expert]

        return rank

    return rule


def fixed(steps: Steps, layers: int) -> Rank:
    uses = Counter(expert for step in steps for expert in step)
    return lambda step, expert: uses[expert]


def belady(steps: Steps, layers: int) -> Rank:
    following: dict[tuple[int, int], float] = {}
    next_use: dict[int, float] = {}
    for step in range(len(steps) - 1, -1, -1):
        for expert in steps[step]:
            following[step, expert] = -next_use.get(expert, np.inf)
            next_use[expert] = step
    return lambda step, expert: following[step, expert]


def hit_rate(steps: Steps, layers: int, room: int, rule: Rule) -> float:
    """The share of visits whose expert is in memory, of which there are at most `room`."""
    rank, held, hits = rule(steps, layers), dict[int, float](), 0
    for step, experts in enumerate(steps):
        for expert in experts:
            if expert in held:
                hits += 1
            elif len(held) >= room:
                del held[min((each for each in held if each not in experts), key=held.__getitem__)]
            held[expert] = rank(step, expert)
    return hits / sum(map(len, steps))


RULES: dict[str, Rule] = {
    "lru": lru,
    "lfu": lfu(np.inf),
    "lfu_half_after_32": lfu(32),
    "fixed_most_used": fixed,
    "belady": belady,
}


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("texts", type=Path)
    parser.add_argument("--count", type=int, default=16, help="texts")
    parser.add_argument("--tokens", type=int, default=400, help="of each text, at most")
    options = parser.parse_args(None if arguments is None else list(arguments))
    model = mobilemoe.load(options.model)
    lines = [json.loads(line) for line in options.texts.read_text().splitlines()]
    texts = [line["text"] for line in lines if "text" in line][: options.count]
    steps = [step for text in texts for step in trace(model, text, options.tokens)]
    layers = model.config.num_hidden_layers
    experts = layers * model.config.num_local_experts
    found = {}
    for share in SHARES:
        room = int(share * experts)
        found[str(share)] = {name: hit_rate(steps, layers, room, rule) for name, rule in RULES.items()}
        print(f"room {share:.0%}:", ", ".join(f"{name} {rate:.1%}" for name, rate in found[str(share)].items()))
    print(json.dumps({"tokens": len(steps) // layers, "experts": experts, "hit_rates": found}))


if __name__ == "__main__":
    main()
