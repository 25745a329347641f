"""Routing that is changed on request computes what its papers say; where nothing is asked for nothing changes."""

import json
import shutil
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest

from mobilemoe.checkpoint import write_random
from mobilemoe.engine import Engine
from mobilemoe.errors import UsageError
from mobilemoe.hub import ASSETS
from mobilemoe.routing import Routing, Skip
from model_configs import CONFIGS, VOCABULARY, error_per_position
from reference import reference_logits
from routing_reference import CachePrior, Capacity

NANO = ASSETS / "nano"
NAMES = ["family", "one-of-many", "no-renormalisation", "softmax-renormalised", "olmoe-like", "every-expert"]
IDS = np.random.default_rng(1).integers(0, 16_000, 300).tolist()


def written(tmp_path, name: str):
    write_random(tmp_path / "model", CONFIGS[name], seed=NAMES.index(name), format="int4")
    return tmp_path / "model", CONFIGS[name]


def tokens(count: int) -> list[int]:
    return np.random.default_rng(count).integers(0, VOCABULARY, count).tolist()


@pytest.mark.parametrize(("strength", "top", "places"), [(0.3, 0, 3), (0.3, 1, 1), (0.1, 1, 6), (5.0, 0, 2)])
@pytest.mark.parametrize("name", NAMES)
def test_cache_prior_is_that_of_the_reference(name, strength, top, places, tmp_path):
    folder, config = written(tmp_path, name)
    places = min(places, config.num_local_experts)
    routing = Routing(cache_prior=strength, always_top=top, cached_experts=places)
    prior = CachePrior(strength, top, places)
    want_TV = reference_logits(folder, tokens(24), prior)
    engine = Engine(folder, activations="fp32", routing=routing)
    assert error_per_position(engine.logits(tokens(24)), want_TV).max() < 1e-3
    assert (engine.routing_use.hits, engine.routing_use.misses) == (prior.hits, prior.misses)
    assert prior.hits + prior.misses == 24 * config.num_hidden_layers * config.num_experts_per_tok


@pytest.mark.parametrize("skip", ["pair", "token", "random"])
@pytest.mark.parametrize("share", [1.0, 0.6, 0.05])
@pytest.mark.parametrize("name", NAMES)
def test_capacity_is_that_of_the_reference(name, share, skip, tmp_path):
    folder, _ = written(tmp_path, name)
    capacity = Capacity(share, skip)
    want_TV = reference_logits(folder, tokens(40), capacity)
    engine = Engine(folder, activations="fp32", routing=Routing(capacity=share, skip=skip))
    assert error_per_position(engine.logits(tokens(40)), want_TV).max() < 1e-3
    assert (engine.routing_use.pairs, engine.routing_use.skipped) == (capacity.pairs, capacity.skipped)
    assert (capacity.skipped > 0) == (share < 1 or (skip == "token" and name != "every-expert"))


def mixed(engine: Engine) -> np.ndarray:
    """Logits of a long prompt, of tokens one by one, and of two texts at once."""
    session, other = engine.session(400), engine.session(64)
    found = [engine.forward([(session, IDS[:250], 250)])]
    found += [engine.forward([(session, [token], 1)]) for token in IDS[250:270]]
    found += [engine.forward([(session, [token], 1), (other, [token], 1)]) for token in IDS[270:]]
    return np.concatenate(found)


@pytest.mark.parametrize(
    "routing",
    [
        Routing(),
        Routing(experts_per_token=4),
        Routing(cached_experts=5),
        Routing(capacity=1.0),
        Routing(cache_prior=0.0, cached_experts=18, always_top=0),
        Routing(cache_prior=3.0, cached_experts=5, always_top=4),
    ],
)
def test_what_changes_no_choice_changes_no_bit(routing):
    assert np.array_equal(mixed(Engine(NANO, threads=2, routing=routing)), mixed(Engine(NANO, threads=1)))


@pytest.mark.parametrize(
    "routing",
    [Routing(cache_prior=0.2, cached_experts=6), *(Routing(capacity=0.4, skip=skip) for skip in get_args(Skip))],
)
def test_results_do_not_depend_on_threads(routing):
    first, *others = (mixed(Engine(NANO, threads=threads, routing=routing)) for threads in (1, 2, 3))
    assert all(np.array_equal(first, other) for other in others)
    assert not np.array_equal(first, mixed(Engine(NANO)))


def test_an_imitated_cache_sees_one_token_after_the_other():
    routing = Routing(cache_prior=0.2, cached_experts=6)
    whole, single = Engine(NANO, routing=routing), Engine(NANO, routing=routing)
    at_once = whole.logits(IDS[:60])
    session = single.session()
    assert np.array_equal(np.stack([session.append([token]) for token in IDS[:60]]), at_once)
    assert whole.routing_use == single.routing_use


def test_a_stronger_prior_misses_less():
    misses = []
    for strength in (0.0, 0.1, 0.3, 1.0):
        engine = Engine(NANO, routing=Routing(cache_prior=strength, cached_experts=9))
        engine.logits(IDS)
        misses.append(engine.routing_use.misses)
    assert misses == sorted(misses, reverse=True)
    assert misses[-1] < misses[0] // 2


@pytest.mark.parametrize("skip", get_args(Skip))
def test_capacity_leaves_single_tokens_alone(skip):
    plain, limited = Engine(NANO), Engine(NANO, routing=Routing(capacity=0.01, skip=skip))
    sessions = [engine.session() for engine in (plain, limited)]
    for token in IDS[:40]:
        assert np.array_equal(*(session.append([token]) for session in sessions))
    assert limited.routing_use.pairs == 0
    limited.logits(IDS)
    assert limited.routing_use.pairs == 8 * 4 * len(IDS)
    assert 0.9 < limited.routing_use.skipped / limited.routing_use.pairs < 1


def test_capacity_counts_prompts_and_not_the_texts_that_are_written_beside_them():
    engine = Engine(NANO, routing=Routing(capacity=0.5))
    plain = Engine(NANO)
    written, prompt, alone = engine.session(), engine.session(), plain.session()
    written.append(IDS[:1])
    alone.append(IDS[:1])
    logits = engine.forward([(written, IDS[1:2], 1), (prompt, IDS[:100], 1)])
    assert np.array_equal(logits[0], alone.append(IDS[1:2]))
    assert engine.routing_use == (0, 0, 8 * 4 * 100, 8 * 2 * 100)


def test_fewer_experts_are_those_of_a_model_that_has_fewer(tmp_path):
    shutil.copytree(NANO, tmp_path / "fewer")
    path = tmp_path / "fewer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_experts_per_tok": 2}))
    engine = Engine(NANO, routing=Routing(experts_per_token=2))
    assert np.array_equal(mixed(engine), mixed(Engine(tmp_path / "fewer")))
    assert engine.config.num_experts_per_tok == 2
    session = engine.session()
    chosen_TLA = np.empty((5, 8, 2), np.int32)
    engine.forward([(session, IDS[:5], 1)], {session: chosen_TLA})
    assert ((chosen_TLA >= 0) & (chosen_TLA < 18)).all()


def test_nothing_is_guessed_where_guesses_would_change_the_text():
    text = [1, 2, 3] * 30
    routing = Routing(cache_prior=0.2, cached_experts=6)
    engine = Engine(NANO, routing=routing)
    engine.generate_ids(text, max_new_tokens=20)
    assert engine.speculate == "off"
    assert engine.drafts.proposed == 0
    with pytest.raises(UsageError, match="guesses would change the text"):
        Engine(NANO, routing=routing, speculate="lookup")
    assert Engine(NANO, routing=Routing(experts_per_token=2)).speculate == "auto"


CAPPED = """
import re, sys, numpy
from mobilemoe.engine import Engine
from mobilemoe.errors import UsageError
from mobilemoe.hub import ASSETS
from mobilemoe.routing import Routing

try:
    Engine(ASSETS / "nano", max_memory=1000)
except UsageError as refused:
    least = int(re.search(r"at least (\\d+) MB", str(refused))[1]) * 10**6
routing = Routing(cache_prior=float(sys.argv[1]), always_top=int(sys.argv[2]))
engine = Engine(ASSETS / "nano", threads=2, max_memory=least + 6_000_000, routing=routing)
session = engine.session(300)
ids = numpy.random.default_rng(1).integers(0, 16_000, 300).tolist()
logits = numpy.concatenate([engine.forward([(session, ids[:100], 100)])] + [[session.append([i])] for i in ids[100:]])
use = engine.expert_use
assert use.places < use.experts, use
numpy.savez(sys.argv[3], logits=logits, read=use.bytes_read)
"""


def test_a_real_cache_is_read_less_with_a_prior_and_the_same_without(tmp_path):
    """Each in a process of its own, since the memory of this one is a part of the limit."""

    def run(strength: float, always_top: int) -> tuple[np.ndarray, int]:
        path = tmp_path / f"{strength}-{always_top}.npz"
        subprocess.run([sys.executable, "-c", CAPPED, str(strength), str(always_top), path], check=True)
        found = np.load(path)
        return found["logits"], int(found["read"])

    engine = Engine(NANO)
    session = engine.session()
    wanted = np.concatenate([engine.forward([(session, IDS[:100], 100)])] + [[session.append([i])] for i in IDS[100:]])
    plain, read = run(0.0, 2)
    assert np.array_equal(plain, wanted)
    assert np.array_equal(run(9.0, 4)[0], wanted)
    preferring, read_less = run(0.5, 2)
    assert read_less < 0.7 * read
    assert np.array_equal(preferring[:100], wanted[:100])  # the prompt is routed as usual
    assert not np.array_equal(preferring, wanted)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"experts_per_token": 0}, "experts_per_token is 0, but must be a whole number from 1 to 4"),
        ({"experts_per_token": 5}, "experts_per_token is 5"),
        ({"experts_per_token": 2, "always_top": 3, "cached_experts": 4}, "always_top is 3, .* from 0 to 2"),
        ({"cached_experts": 19}, "cached_experts is 19, .* from 1 to 18"),
        ({"cached_experts": 2.0}, "cached_experts is 2.0"),
        ({"cache_prior": -0.1, "cached_experts": 3}, "cache_prior is -0.1, but must be 0"),
        ({"cache_prior": float("nan"), "cached_experts": 3}, "cache_prior is nan"),
        ({"cache_prior": "0.1", "cached_experts": 3}, "cache_prior is '0.1'"),
        ({"cache_prior": 0.1}, "give max_memory too"),
        ({"capacity": 0}, "capacity is 0, but must be above 0 and at most 1"),
        ({"capacity": 1.01}, "capacity is 1.01"),
        ({"capacity": 0.5, "skip": "first"}, "skip is 'first', but must be 'pair' or 'token' or 'random'"),
    ],
)
def test_what_is_out_of_range_is_refused(wrong, sentence):
    with pytest.raises(UsageError, match=sentence):
        Engine(NANO, routing=Routing(**wrong))


def test_an_imitated_cache_beside_a_real_one_is_refused():
    with pytest.raises(UsageError, match="with max_memory there is a real one"):
        Engine(NANO, max_memory=10**12, routing=Routing(cached_experts=4))


def test_a_dense_model_has_no_routing(tmp_path):
    write_random(tmp_path / "model", CONFIGS["dense"], seed=1, format="int4")
    Engine(tmp_path / "model", routing=Routing())
    for routing in (Routing(capacity=0.5), Routing(experts_per_token=1), Routing(cache_prior=1, cached_experts=1)):
        with pytest.raises(UsageError, match="the model is dense"):
            Engine(tmp_path / "model", routing=routing)
