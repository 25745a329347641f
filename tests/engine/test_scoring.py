"""Log-likelihoods are the log-softmax of the logits, whatever contexts share, and only what is needed is computed."""

import numpy as np
import pytest

from engine_models import fed_tokens, ids_for
from mobilemoe.engine import Engine, scoring
from mobilemoe.errors import UsageError
from mobilemoe.sampling import log_softmax


def by_hand(engine: Engine, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    logprobs_TV = log_softmax(engine.logits([*context, *continuation])[len(context) - 1 : -1])
    chosen_T = logprobs_TV[np.arange(len(continuation)), continuation]
    return float(chosen_T.sum()), bool((logprobs_TV.argmax(axis=1) == continuation).all())


def pairs_for(engine: Engine) -> list[tuple[list[int], list[int]]]:
    """Contexts that share much, little and nothing, in no order; greedy continuations among them."""
    opening, pairs = ids_for(engine, 60), []
    for seed in range(4):
        context = [*opening[: 20 * seed], *ids_for(engine, 5 + seed, seed=seed)]
        greedy = engine.generate_ids(context, max_new_tokens=3)
        pairs += [(context, greedy), (context, greedy[:1]), (context, [*greedy[:2], (greedy[2] + 1) % 100])]
        pairs += [(context, ids_for(engine, count, seed=9)) for count in (1, 2, 30)]
    pairs += [(opening, pairs[0][1]), ([opening[0]], opening[1:9]), (opening, pairs[0][1])]
    return [pairs[at] for at in np.random.default_rng(0).permutation(len(pairs))]


@pytest.mark.parametrize(("computed", "held"), [(2048, 16_384), (40, 16_384), (2048, 70), (1, 1)])
def test_scores_are_those_of_the_logits(make_engine, monkeypatch, computed, held):
    monkeypatch.setattr(scoring, "COMPUTED", computed)
    monkeypatch.setattr(scoring, "HELD", held)
    engine = make_engine()
    pairs = pairs_for(engine)
    results = engine.loglikelihoods(pairs)
    assert any(greedy for _, greedy in results)
    assert not all(greedy for _, greedy in results)
    for (context, continuation), (logprob, greedy) in zip(pairs, results, strict=True):
        expected = by_hand(engine, context, continuation)
        assert logprob == pytest.approx(expected[0], rel=1e-5, abs=1e-5)
        assert greedy == expected[1]
        assert engine.loglikelihood(context, continuation) == (logprob, greedy)


def test_a_score_does_not_depend_on_what_else_is_asked(make_engine):
    engine = make_engine()
    pairs = pairs_for(engine)
    assert engine.loglikelihoods(pairs[::-1]) == engine.loglikelihoods(pairs)[::-1]


def test_shared_prefixes_are_computed_once(make_engine, monkeypatch):
    engine = make_engine()
    shots = ids_for(engine, 400)
    questions = [[*shots, *ids_for(engine, 10, seed=seed)] for seed in range(5)]
    answers = [ids_for(engine, count, seed=20 + count) for count in (1, 2, 3, 4)]
    fed = fed_tokens(engine, monkeypatch)
    engine.loglikelihoods([(question, answer) for question in questions for answer in answers])
    # The shots, the rest of each question without its last token, and for each answer that token and all but its last.
    assert sum(fed) == 400 + 5 * 9 + 5 * (1 + 2 + 3 + 4)


def test_texts_longer_than_a_chunk_are_scored_whole(make_engine):
    engine = make_engine()
    ids = ids_for(engine, 800)
    assert engine.loglikelihood(ids[:1], ids[1:])[0] == pytest.approx(by_hand(engine, ids[:1], ids[1:])[0], rel=1e-5)
    assert engine.loglikelihood(ids[:600], ids[600:]) == engine.loglikelihoods([(ids[:600], ids[600:])] * 2)[1]


def test_the_context_can_be_filled_to_the_last_token(make_engine):
    engine = make_engine()
    ids = ids_for(engine, engine.context + 1)
    logprob, _ = engine.loglikelihood(ids[:-4], ids[-4:])  # the last token is never fed
    assert np.isfinite(logprob)
    with pytest.raises(UsageError, match="context"):
        engine.loglikelihood(ids[:-4], [*ids[-4:], 0])


def test_an_empty_continuation_is_certain(make_engine):
    engine = make_engine()
    assert engine.loglikelihoods([([1], []), ([1], [2]), ([1], [])])[::2] == [(0.0, True)] * 2
    assert engine.loglikelihoods([]) == []


@pytest.mark.parametrize(("context", "continuation"), [([], [1]), ([-1], [1]), ([1], [10**9]), ([0.5], [1])])
def test_what_cannot_be_scored_is_refused(make_engine, context, continuation):
    engine = make_engine()
    with pytest.raises(UsageError):
        engine.loglikelihoods([([1], [2]), (context, continuation)])
