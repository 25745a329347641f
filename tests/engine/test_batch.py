"""A batch computes nothing twice, continues after an interrupt, and samples as the rules say."""

import math
from collections import Counter

import numpy as np
import pytest

import mobilemoe
from engine_models import fed_tokens, ids_for
from interrupts import interrupted_steps
from mobilemoe.checkpoint import write_random
from mobilemoe.engine import Engine
from mobilemoe.engine.batch import CHUNK_BESIDE
from mobilemoe.engine.core import CHUNK
from mobilemoe.engine.native import native
from mobilemoe.errors import UsageError
from mobilemoe.presets import family_member
from mobilemoe.sampling import Sampler, Sampling, log_softmax


@pytest.fixture
def engine(make_engine):
    return make_engine(speculate="off")  # so that a step is a token; test_speculation.py has the rest


def test_a_long_prompt_does_not_hold_up_the_others(engine, monkeypatch):
    batch = engine.batch()
    batch.join(ids_for(engine, 3))
    assert [number for number, _ in batch.step()] == [0]
    batch.join(ids_for(engine, 2 * CHUNK, seed=1))
    batch.join(ids_for(engine, 5, seed=2))
    fed = fed_tokens(engine, monkeypatch)
    steps = math.ceil(2 * CHUNK / (CHUNK_BESIDE - 3))
    given = [[number for number, _ in batch.step()] for _ in range(steps + 1)]
    assert given == [[0]] * (steps - 1) + [[0, 1, 2]] * 2
    assert max(fed) <= CHUNK_BESIDE
    assert sum(fed) == steps + 1 + 2 * CHUNK + 5 + 2


def test_prompts_alone_are_read_in_large_chunks(engine, monkeypatch):
    batch, fed = engine.batch(), fed_tokens(engine, monkeypatch)
    for seed in range(2):
        batch.join(ids_for(engine, CHUNK, seed=seed))
    assert [*batch.step()] == []
    assert fed == [CHUNK - 2]


def test_what_has_left_is_computed_no_further(engine, monkeypatch):
    batch = engine.batch()
    for seed in range(3):
        batch.join(ids_for(engine, 4, seed=seed))
    batch.step()
    batch.leave(1)
    fed = fed_tokens(engine, monkeypatch)
    assert [number for number, _ in batch.step()] == [0, 2]
    assert fed == [2]
    batch.leave(0)
    batch.leave(2)
    assert [*batch.step()] == []
    assert (fed, len(batch)) == ([2], 0)
    assert batch.join([1]) == 3


def test_an_interrupt_loses_and_repeats_nothing(engine, monkeypatch):
    ids = ids_for(engine, CHUNK + 20)
    expected = engine.generate_ids(ids, max_new_tokens=6)
    batch = engine.batch()
    batch.join(ids)
    made = interrupted_steps(engine, batch, monkeypatch, 20)
    assert made[:6] == expected


def test_a_text_whose_context_is_full_is_refused_before_anything_changes(make_engine):
    engine = make_engine(context=8, speculate="off")
    assert (engine.context, engine.session().context) == (8, 8)
    batch = engine.batch()
    batch.join([1, 2, 3])
    batch.join([4, 5, 6, 7, 8, 9, 10])
    first = [[*batch.step()] for _ in range(2)]
    assert [len(given) for given in first] == [2, 2]
    for _ in range(2):
        with pytest.raises(UsageError, match="context"):
            batch.step()
    batch.leave(1)
    made = [choice.token for given in first for number, choice in given if number == 0]
    made += [choice.token for _ in range(4) for _, choice in batch.step()]
    assert made == engine.generate_ids([1, 2, 3], max_new_tokens=6)


def test_a_conversation_computes_only_what_is_new(engine, monkeypatch):
    fed, conversation = fed_tokens(engine, monkeypatch), engine.conversation()

    def answer(ids: list[int], count: int) -> list[int]:
        batch = conversation.start(ids, Sampling())
        made = [choice.token for _ in range(count) for _, choice in batch.step()]
        batch.leave(0)
        return made

    ids = ids_for(engine, 50)
    ids += answer(ids, 4)
    assert sum(fed) == 50 + 3
    fed.clear()
    longer = [*ids, *ids_for(engine, 10, seed=1)]
    made = answer(longer, 2)
    assert sum(fed) == 1 + 10 + 1  # the last token of the first answer was never fed
    assert made == engine.generate_ids(longer, max_new_tokens=2)
    fed.clear()
    assert answer(longer, 2) == made
    assert sum(fed) == 1 + 1


def test_two_texts_at_once_do_not_disturb_each_other(engine):
    one, other = ids_for(engine, 30), [*ids_for(engine, 20), 5]
    expected = [engine.generate_ids(ids, max_new_tokens=5) for ids in (one, other)]
    conversation = engine.conversation()
    first = conversation.start(one, Sampling())
    made: tuple[list[int], list[int]] = ([], [])
    made[0].extend(choice.token for _, choice in first.step())
    second = conversation.start(other, Sampling())
    for batch, tokens in ((first, made[0]), (second, made[1])) * 5:
        tokens += [choice.token for _, choice in batch.step()]
    assert [tokens[:5] for tokens in made] == expected


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"repetition_penalty": 1.5},
        {"presence_penalty": 1.5},
        {"frequency_penalty": 0.75},
        {"logit_bias": {7: 3.0, 9: 2.5, 11: -5.0}},
        {"repetition_penalty": 0.9, "presence_penalty": 1.0, "frequency_penalty": 0.5, "logit_bias": {7: 4.0}},
        {"temperature": 1.5, "top_k": 1, "frequency_penalty": 2.0},
    ],
    ids=str,
)
def test_tokens_and_logprobs_are_those_of_the_rules_in_numpy(engine, sampling):
    ids = ids_for(engine, 12)
    batch, sampler = engine.batch(), Sampler(Sampling(**sampling), seen=ids)
    batch.join(ids, Sampling(**sampling), logprobs=4)
    for _ in range(12):
        logits_V = engine.logits(ids)[-1]
        ((_, choice),) = batch.step()
        assert choice.token == sampler.choose(logits_V)
        logprobs_V = log_softmax(logits_V)
        assert choice.logprob == pytest.approx(logprobs_V[choice.token], abs=1e-4)
        best = np.argsort(-logprobs_V, kind="stable")[:4]
        assert [token for token, _ in choice.top] == best.tolist()
        assert [logprob for _, logprob in choice.top] == pytest.approx(logprobs_V[best].tolist(), abs=1e-4)
        ids.append(choice.token)


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 5},
        {"temperature": 2.0, "top_p": 0.5},
        {"temperature": 1.0, "min_p": 0.2},
    ],
    ids=str,
)
def test_sampled_frequencies_follow_the_probabilities(engine, sampling):
    ids, draws = ids_for(engine, 6), 300
    session = engine.session()
    logits_V = session.append(ids)
    expected, taken = Counter(), Counter()
    for seed in range(draws):
        expected[Sampler(Sampling(**sampling, seed=seed)).choose(logits_V)] += 1
        taken[engine.generate_ids(ids, max_new_tokens=1, session=session, seed=seed, **sampling)[0]] += 1
    for token in expected | taken:
        share = (expected[token] + taken[token]) / (2 * draws)
        assert abs(expected[token] - taken[token]) <= 5 * math.sqrt(2 * draws * share * (1 - share)) + 1, token


def test_seeds_repeat_and_their_absence_does_not(engine):
    ids = ids_for(engine, 6)
    made = [engine.generate_ids(ids, max_new_tokens=8, temperature=5.0, seed=seed) for seed in (1, 1, 2, None, None)]
    assert made[0] == made[1]
    assert len({tuple(tokens) for tokens in made[1:]}) == 4


def test_what_cannot_join_is_refused(engine):
    batch = engine.batch()
    calls = {
        "at least one": lambda: batch.join([]),
        "outside the vocabulary": lambda: batch.join([10**12]),
        "not a whole number": lambda: batch.join(["a"]),
        "more than the context": lambda: batch.join([1] * (engine.context + 1)),
        "logprobs is -1": lambda: batch.join([1], logprobs=-1),
        "logit_bias has token id 1000000": lambda: batch.join([1], Sampling(logit_bias={10**6: 1.0})),
    }
    for words, call in calls.items():
        with pytest.raises(UsageError, match=words):
            call()
    assert len(batch) == 0


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_stream_keeps_its_choices(backend):
    model = mobilemoe.load("nano", backend=backend)
    stream = model.stream("The old man", max_new_tokens=5, logprobs=3)
    text = "".join(stream)
    assert model.tokenizer.decode([choice.token for choice in stream.choices]) == text
    for choice in stream.choices:
        assert choice.top[0] == (choice.token, pytest.approx(choice.logprob))
        assert len(choice.top) == 3
    plain = model.stream("The old man", max_new_tokens=2)
    assert "".join(plain)
    assert [(choice.logprob, choice.top) for choice in plain.choices] == [(None, ())] * 2
    for logprobs in (-1, 1.5, "all", 10**9):
        with pytest.raises(UsageError, match="logprobs is"):
            model.stream("x", logprobs=logprobs)


class _Guide:
    """Allows `tokens` only, or in turn each of them."""

    def __init__(self, engine, tokens, in_turn=False):
        self.tokens, self.in_turn, self.taken = tokens, in_turn, []
        self.words = (engine.vocab_size + 31) // 32

    def take(self, token):
        self.taken.append(token)

    def allowed(self):
        bits = np.zeros(32 * self.words, np.uint8)
        bits[[self.tokens[len(self.taken)]] if self.in_turn else self.tokens] = 1
        return np.packbits(bits, bitorder="little").view(np.uint32)


def test_what_a_guide_does_not_allow_is_never_chosen(engine):
    tokens = [3, engine.vocab_size - 1, 40]
    for sampling in (
        Sampling(),
        Sampling(logit_bias={5: 1000, 3: -1000}),
        Sampling(temperature=50, seed=1),
        Sampling(temperature=1, top_k=2, top_p=0.9, min_p=0.1, seed=1, repetition_penalty=3, frequency_penalty=9),
    ):
        batch = engine.batch()
        free, one, forced = _Guide(engine, tokens), _Guide(engine, tokens[:1]), _Guide(engine, tokens, in_turn=True)
        for guide in (free, one, forced):
            batch.join(ids_for(engine, 3), sampling, guide=guide)
        for _ in range(3):
            batch.step()
        assert {*free.taken} <= {*tokens}
        assert one.taken == [3, 3, 3]
        assert forced.taken == tokens


def test_a_guide_changes_neither_its_neighbours_nor_the_log_probabilities(engine):
    alone, guided = engine.batch(), engine.batch()
    alone.join(ids_for(engine, 4), logprobs=3)
    guided.join(ids_for(engine, 4), logprobs=3)
    guided.join(ids_for(engine, 4), logprobs=3, guide=_Guide(engine, [7]))
    [(_, expected)] = alone.step()
    (_, neighbour), (_, choice) = guided.step()
    assert neighbour == expected
    assert choice.token == 7
    assert choice.top == expected.top
    assert choice.logprob < expected.logprob


def test_what_texts_share_is_computed_once(engine, monkeypatch):
    ids, others = ids_for(engine, CHUNK + 100), [ids_for(engine, 10, seed=seed) for seed in range(3)]
    prompts = [ids, ids, *([*ids[:400], *other] for other in others)]
    expected = [engine.generate_ids(prompt, max_new_tokens=4) for prompt in prompts]
    fed, batch, made = fed_tokens(engine, monkeypatch), engine.batch(), [[] for _ in prompts]
    for prompt in prompts:
        batch.join(prompt)
    while min(map(len, made)) < 4:
        for number, choice in batch.step():
            made[number].append(choice.token)
            if len(made[number]) == 4:
                batch.leave(number)
    assert made == expected
    assert sum(fed) == len(ids) + 1 + 3 * 10 + 5 * 3


def test_texts_that_wait_for_one_that_leaves_go_on(engine, monkeypatch):
    ids = ids_for(engine, 2 * CHUNK)
    prompts = [[*ids, *ids_for(engine, 5, seed=seed)] for seed in range(3)]
    expected = [engine.generate_ids(prompt, max_new_tokens=3) for prompt in prompts]
    fed, batch = fed_tokens(engine, monkeypatch), engine.batch()
    for prompt in prompts:
        batch.join(prompt)
    batch.step()
    batch.leave(0)
    made = {1: [], 2: []}
    while min(map(len, made.values())) < 3:
        for number, choice in batch.step():
            made[number].append(choice.token)
    assert [made[1][:3], made[2][:3]] == expected[1:]
    assert sum(fed) < 2 * CHUNK + 40


def test_a_token_tells_the_experts_of_the_pass_that_chose_it(engine):
    """Of a long prompt, of a short one and while decoding, whatever the neighbours are."""
    prompts = [ids_for(engine, CHUNK + 7), ids_for(engine, 3, seed=1), ids_for(engine, CHUNK + 7)]
    batch = engine.batch()
    wanting = {batch.join(ids, experts=True): list(ids) for ids in prompts}
    silent = batch.join(ids_for(engine, 4, seed=2))
    told = {number: [] for number in wanting}
    while len(told[0]) < 3:
        for number, choice in batch.step():
            if number == silent:
                assert choice.experts == ()
            else:
                told[number].append(choice.experts)
                wanting[number].append(choice.token)
    config = engine.config
    for number, ids in wanting.items():
        count = len(ids) - 1  # the last token was chosen, but is not yet computed with
        chosen_TLA = np.empty((count, config.num_hidden_layers, config.num_experts_per_tok), np.int32)
        session = engine.session()
        engine.forward([(session, ids[:-1], 1)], {session: chosen_TLA})
        made = len(ids) - len(prompts[number])
        assert np.array_equal(chosen_TLA[count - made :], np.array(told[number]))


def test_a_dense_model_has_no_experts_to_tell_of(tmp_path):
    config = family_member(64, expansion=1, layers=1, vocab_size=96, max_position_embeddings=64)
    write_random(tmp_path / "dense", config, seed=1, format="int4")
    with pytest.raises(UsageError, match="has no experts"):
        Engine(tmp_path / "dense").batch().join([1], experts=True)


def test_tokens_chosen_together_are_those_chosen_alone_and_an_error_stays_with_its_text(engine):
    vocabulary = engine.vocab_size
    logits = np.random.default_rng(0).normal(size=(9, vocabulary)).astype(np.float32)
    logits[4] = np.nan
    rules = [{"temperature": 0.9, "top_p": 0.8, "seed": row} for row in range(9)]

    def texts():
        return [
            (native.Sampler(vocabulary, **rule), row[None], True, 2, None, None)
            for rule, row in zip(rules, logits, strict=True)
        ]

    together = engine.native.choose(texts())
    alone = [engine.native.choose([text])[0] for text in texts()]
    assert isinstance(together[4][0], native.NativeError)
    assert together[4][0].code == "numerics"
    del together[4], alone[4]
    assert together == alone
    sampler = native.Sampler(vocabulary)
    for wrong in (
        [(sampler, logits[:1], False, 0, None, None), (sampler, logits[1:2], False, 0, None, None)],
        [(sampler, logits[:1, 1:], False, 0, None, None)],
        [(sampler, logits[:1], False, 0, np.zeros(1, np.uint32), None)],
        [(sampler, logits[:2], False, 0, None, engine.native.new_speculation("auto"))],
        [(sampler, logits[:1])],
    ):
        with pytest.raises(native.NativeError) as refused:
            engine.native.choose(wrong)
        assert refused.value.code == "usage"
    assert engine.native.choose([]) == []
