"""Guessed tokens change the speed of a text, and nothing else."""

import numpy as np
import pytest

import mobilemoe
from engine_models import EACH_ISA, fed_tokens, ids_for
from interrupts import interrupted_steps
from mobilemoe.engine import Engine
from mobilemoe.errors import UsageError
from mobilemoe.sampling import Sampling

EACH_KIND = pytest.mark.parametrize("kind", [{}, {"kv": "fp16"}, {"activations": "fp32"}], ids=str)
NEW = 30
# Each draws on another part of the sampler; only some of the texts repeat themselves.
RULES = (
    {},
    {"temperature": 0.3, "seed": 1},
    {"temperature": 0.9, "top_k": 20, "seed": 2},
    {"temperature": 0.7, "top_p": 0.9, "min_p": 0.01, "seed": 3},
    {"repetition_penalty": 1.05},
    {"temperature": 0.5, "presence_penalty": 0.2, "frequency_penalty": 0.1, "seed": 4},
    {"temperature": 0.2, "logit_bias": {5: 3.0}, "seed": 5},
    {"temperature": 3.0, "logit_bias": {3: 100.0, 4: 100.0}, "seed": 6},  # guesses are often wrong
)


def prompt_for(engine: Engine, count: int, seed: int = 0) -> list[int]:
    """Ids that repeat themselves, so that there is something to guess from the start."""
    return (ids_for(engine, 11, seed=seed) * (count // 11 + 1))[:count]


def write(engine: Engine, prompts, rules, *, new=NEW, **asked):
    """All texts together: what each was given, and what its session holds in the end."""
    batch, sessions, given = engine.batch(), [], [[] for _ in prompts]
    for prompt, rule in zip(prompts, rules, strict=True):
        sessions.append(engine.session())
        batch.join(prompt, Sampling(**rule), session=sessions[-1], **asked)
    while len(batch):
        for number, choice in batch.step():
            given[number].append(choice)
            if len(given[number]) == new:
                batch.leave(number)
    return given, [session.tokens for session in sessions]


@EACH_ISA
@EACH_KIND
def test_texts_are_the_same_with_guesses_and_without(make_engine, isa, kind):
    """Of all kinds of sampling, alone and together; prompts end before, in and behind the sliding window of 70."""
    plain = make_engine(isa, threads=1, speculate="off", **kind)
    guessing = make_engine(isa, threads=2, speculate="lookup", **kind)
    prompts = [prompt_for(plain, 12 + 17 * at, seed=at) for at in range(len(RULES))]
    expected = write(plain, prompts, RULES, logprobs=2)
    assert write(guessing, prompts, RULES, logprobs=2) == expected
    alone = [write(guessing, [prompt], [rule], logprobs=2) for prompt, rule in zip(prompts, RULES, strict=True)]
    assert [given for (given,), _ in alone] == expected[0]
    assert [held for _, (held,) in alone] == expected[1]
    assert plain.drafts == (0, 0, 0)
    assert 0 < guessing.drafts.accepted < guessing.drafts.proposed <= 4 * guessing.drafts.passes


def test_the_choice_to_guess_changes_no_text_either(make_engine):
    plain, guessing = make_engine(speculate="off"), make_engine()
    prompts = [prompt_for(plain, 30 + 40 * at, seed=at) for at in range(len(RULES))]
    assert write(guessing, prompts, RULES, new=120) == write(plain, prompts, RULES, new=120)


def test_a_text_in_a_loop_takes_far_fewer_passes(make_engine, monkeypatch):
    engine = make_engine(speculate="lookup")
    push = {"logit_bias": {7: 1e6}}
    fed = fed_tokens(engine, monkeypatch)
    [given], _ = write(engine, [[7] * 20], [push], new=101)
    assert [choice.token for choice in given] == [7] * 101
    assert fed == [20] + [5] * 20


@EACH_KIND
def test_what_a_wrong_guess_left_behind_is_never_seen(make_engine, kind):
    """Keys and values of wrong guesses are overwritten, at the edges of blocks and windows too."""
    engine = make_engine(speculate="lookup", **kind)
    for count in range(56, 75):
        session, prompt = engine.session(), prompt_for(engine, count)
        made = engine.generate_ids(prompt, max_new_tokens=10, session=session, temperature=0.8, seed=count)
        assert session.tokens == [*prompt, *made[:-1]]
        more = ids_for(engine, 4, seed=count)
        expected_V = engine.logits([*session.tokens, *more])[-1]
        np.testing.assert_array_equal(session.append(more), expected_V)


def test_the_context_is_used_to_its_last_token(make_engine):
    plain, guessing = (make_engine(context=40, speculate=how) for how in ("off", "lookup"))
    for count in range(30, 41):
        prompt = prompt_for(plain, count)
        made = guessing.generate_ids(prompt, max_new_tokens=99)
        assert made == plain.generate_ids(prompt, max_new_tokens=99)
        assert len(made) == 41 - count
    batch = guessing.batch()
    batch.join(prompt_for(plain, 36))
    with pytest.raises(UsageError, match="context"):
        all(iter(lambda: [*batch.step()], []))


class _OneIn:
    """A guide that allows, after each token, those of the same remainder."""

    def __init__(self, engine: Engine, parts: int) -> None:
        self._words, self._parts, self._last = (engine.vocab_size + 31) // 32, parts, 0

    def take(self, token):
        self._last = token

    def allowed(self):
        bits = np.zeros(32 * self._words, np.uint8)
        bits[self._last % self._parts :: self._parts] = 1
        return np.packbits(bits, bitorder="little").view(np.uint32)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_guided_texts_and_their_neighbours_are_the_same(make_engine, rule):
    given = []
    for how in ("off", "lookup"):
        engine = make_engine(speculate=how)
        batch, texts = engine.batch(), [[], [], []]
        batch.join(prompt_for(engine, 40), Sampling(**rule), guide=_OneIn(engine, 2), logprobs=1)
        batch.join(prompt_for(engine, 40), Sampling(**rule))
        often_wrong = Sampling(temperature=3.0, logit_bias={3: 100.0, 4: 100.0}, seed=6)
        batch.join([3] * 12, often_wrong, guide=_OneIn(engine, 1))
        while len(batch):
            for number, choice in batch.step():
                texts[number].append(choice)
                if len(texts[number]) == NEW:
                    batch.leave(number)
        given.append(texts)
    assert given[0] == given[1]
    assert 0 < engine.drafts.accepted < engine.drafts.proposed


def test_each_token_tells_the_experts_of_its_own_row(make_engine):
    plain, guessing = (make_engine(speculate=how) for how in ("off", "lookup"))
    prompts = [prompt_for(plain, count) for count in (5, 30, 90)]
    expected, _ = write(plain, prompts, RULES[:3], experts=True)
    given, _ = write(guessing, prompts, RULES[:3], experts=True)
    assert given == expected
    assert guessing.drafts.accepted > 0


def test_a_prompt_that_joins_while_guesses_are_made_changes_nothing(make_engine):
    plain, guessing = (make_engine(speculate=how) for how in ("off", "lookup"))
    prompts = [prompt_for(plain, 40), prompt_for(plain, 900, seed=1)]
    expected = [plain.generate_ids(prompt, max_new_tokens=NEW) for prompt in prompts]
    batch, made = guessing.batch(), [[], []]
    batch.join(prompts[0])
    while len(made[0]) < 10:
        for number, choice in batch.step():
            made[number].append(choice.token)
    batch.join(prompts[1])
    while min(map(len, made)) < NEW:
        for number, choice in batch.step():
            made[number].append(choice.token)
    assert [tokens[:NEW] for tokens in made] == expected


def test_an_interrupt_loses_and_repeats_nothing(make_engine, monkeypatch):
    plain, engine = (make_engine(speculate=how) for how in ("off", "lookup"))
    prompt = prompt_for(plain, 40)
    batch = engine.batch()
    batch.join(prompt)
    made = interrupted_steps(engine, batch, monkeypatch, NEW)
    assert made[:NEW] == plain.generate_ids(prompt, max_new_tokens=NEW)


@pytest.mark.parametrize("stop", [(), ("e",), ("the", "\n")])
def test_streams_end_at_the_same_place(stop):
    texts = []
    for how in ("off", "lookup"):
        model = mobilemoe.load("nano", speculate=how)
        for at in range(3):
            rule = {"temperature": 0.4 * at, "seed": at}
            stream = model.stream("One, two, three. One, two, three. One, two", stop=stop, max_new_tokens=50, **rule)
            texts.append(("".join(stream), stream.finished, stream.new_tokens, stream.choices))
        batch = ["One, two, three. One, two", "a b a b a b", "The sea."]
        texts.append(model.generate_batch(batch, stop=stop, max_new_tokens=30))
    assert texts[:4] == texts[4:]


def test_only_known_ways_to_guess_are_taken(make_engine):
    with pytest.raises(UsageError, match="speculate is 'always'"):
        make_engine(speculate="always")
    with pytest.raises(UsageError, match="speculate is 'lookup', but `backend` 'torch' guesses nothing"):
        mobilemoe.load("nano", backend="torch", speculate="lookup")
