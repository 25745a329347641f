"""What a pass of several tokens costs, and what a batch of several texts gives, against one token.

    python benchmarks/rows.py MODEL [--isa avx512,avx2] [--axis out] [--rows 2,4,8] [--depth 64] [--rounds 50]

MODEL is nano, a folder, or the name of a preset, whose shape then gets random weights. `cost` is the time of a pass of
T tokens of one text over that of one token; `gain` is the tokens per second of B texts, one token each, over those of
one. Everything is measured in turn in each round, and the fastest eighth of the rounds counts: other programs only slow
a pass down. `experts` is how many different ones a layer of such a pass reads. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

import mobilemoe
from mobilemoe.config import GroupAxis
from mobilemoe.engine import Engine
from mobilemoe.engine.core import Request
from mobilemoe.load import Model
from mobilemoe.presets import PRESETS
from mobilemoe.profile.random_model import random_model
from mobilemoe.profile.tokens import tokens_for


class Subject:
    """An open engine, the texts that it continues, and the seconds of each kind of pass."""

    def __init__(self, model: Model, texts: int, depth: int) -> None:
        assert model.engine
        self.engine: Engine = model.engine
        self.depth = depth
        self.ids = tokens_for(model, 20_000, dummy=False).ids
        self.sessions = [self.engine.session(depth + texts) for _ in range(texts)]
        for index, session in enumerate(self.sessions):
            session.append(self.ids[index * depth : (index + 1) * depth])
        self.seconds: dict[tuple[str, int], list[float]] = {}
        self.experts: dict[tuple[str, int], list[float]] = {}
        self.at = texts * depth

    def measure(self, kind: str, rows: int, count_experts: bool) -> None:
        if self.at + rows > len(self.ids):
            self.at = 0
        ids = self.ids[self.at : self.at + rows]
        self.at += rows
        requests: list[Request] = [(self.sessions[0], ids, rows)]
        if kind == "batch":
            requests = [(session, [token], 1) for session, token in zip(self.sessions, ids, strict=False)]
        config = self.engine.config
        chosen = {
            session: np.empty((len(tokens), config.num_hidden_layers, config.num_experts_per_tok), np.int32)
            for session, tokens, _ in requests
        }
        began = time.perf_counter()
        self.engine.forward(requests, chosen if count_experts else None)
        took = time.perf_counter() - began
        for session, _, _ in requests:
            session.truncate(self.depth)
        if count_experts:
            together = np.concatenate(list(chosen.values()))
            distinct = [len(np.unique(together[:, layer])) for layer in range(config.num_hidden_layers)]
            self.experts.setdefault((kind, rows), []).append(float(np.mean(distinct)))
        else:
            self.seconds.setdefault((kind, rows), []).append(took)

    def result(self, rows: Sequence[int]) -> dict[str, Any]:
        fast = {point: sorted(found)[len(found) // 8] for point, found in self.seconds.items()}
        one = min(fast["pass", 1], fast["batch", 1])
        return {
            "threads": self.engine.threads,
            "one_us": round(one * 1e6, 1),
            "cost": {count: round(fast["pass", count] / one, 3) for count in rows},
            "gain": {count: round(count * one / fast["batch", count], 3) for count in rows},
            "experts": {f"{kind} {count}": round(float(np.mean(n)), 1) for (kind, count), n in self.experts.items()},
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--isa", default="avx512,avx2")
    parser.add_argument("--axis", default="out", choices=("in", "out"))
    parser.add_argument("--rows", default="2,4,8")
    parser.add_argument("--depth", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    name = given.model
    if name in PRESETS and name != "nano":
        name = str(random_model(name, cast(GroupAxis, given.axis), print))
    rows, load, subjects = [int(count) for count in given.rows.split(",")], os.getloadavg()[0], {}
    for isa in given.isa.split(","):
        os.environ["MOBILEMOE_ISA"] = isa
        subjects[isa] = Subject(mobilemoe.load(name, threads=given.threads), max(rows), given.depth)
    for round_index in range(given.rounds):
        for subject in subjects.values():
            for count in [1, *rows]:
                for kind in ("pass", "batch"):
                    subject.measure(kind, count, count_experts=round_index % 8 == 7)
    found = {isa: subject.result(rows) for isa, subject in subjects.items()}
    print("               " + "".join(f"{count:>8}" for count in rows))
    for isa, result in found.items():
        for kind in ("cost", "gain"):
            print(f"{isa:<10} {kind}" + "".join(f"{result[kind][count]:8.2f}" for count in rows))
    print(json.dumps({"model": given.model, "load": [round(load, 1), round(os.getloadavg()[0], 1)], **found}))


if __name__ == "__main__":
    main()
