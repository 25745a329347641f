"""Sampling chooses as the formulas say, the same for the same seed, and copes with any logits and values."""

import math
from collections import Counter

import numpy as np
import pytest

from mobilemoe.errors import UsageError
from mobilemoe.sampling import Sampler, Sampling, with_logprobs

LOGITS = np.array([1.0, 3.0, -2.0, 2.5, 0.0, 3.0, -np.inf, 1.5], np.float32)  # ids 1 and 5 tie
DRAWS = 2000


def reference(logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> dict[int, float]:
    """The distribution by the book, in plain Python: a filter at a time over a list sorted by probability."""
    ranked = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if top_k:
        ranked = ranked[:top_k]
    weights = {i: math.exp(float(logits[i]) / temperature) for i in ranked}
    total = sum(weights.values())
    shares = {i: weights[i] / total for i in ranked}
    kept, mass = {}, 0.0
    for i in ranked:
        if mass < top_p and shares[i] >= min_p * shares[ranked[0]]:
            kept[i] = shares[i]
        mass += shares[i]
    return {i: share / sum(kept.values()) for i, share in kept.items() if share > 0}


def drawn(logits, draws: int = DRAWS, **options) -> Counter:
    """How often each token is chosen by samplers of ten seeds."""
    samplers = [Sampler(Sampling(**options, seed=seed)) for seed in range(10)]
    return Counter(samplers[turn % 10].choose(logits) for turn in range(draws))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_k": 2},
        {"temperature": 2.0, "top_k": 4},
        {"temperature": 1.0, "top_k": 100},
        {"temperature": 1.0, "top_p": 1e-9},
        {"temperature": 1.0, "top_p": 0.5},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 2.0, "top_p": 0.8},
        {"temperature": 1.0, "min_p": 0.2},
        {"temperature": 2.0, "min_p": 0.3},
        {"temperature": 1.0, "min_p": 1.0},
        {"temperature": 2.0, "top_k": 5, "top_p": 0.9, "min_p": 0.25},
    ],
    ids=str,
)
def test_frequencies_are_those_of_the_reference(options):
    expected = reference(LOGITS, **options)
    counts = drawn(LOGITS, **options)
    assert set(counts) <= set(expected)
    for token, share in expected.items():
        sigma = math.sqrt(DRAWS * share * (1 - share))
        assert abs(counts[token] - DRAWS * share) <= 5 * sigma + 1e-9, token


def test_greedy_takes_the_lowest_of_equals():
    for logits in (LOGITS, np.zeros(9, np.float32), np.array([-1.0, -1.0, -5.0], np.float32)):
        assert Sampler(Sampling()).choose(logits) == min(np.flatnonzero(logits == logits.max()))


def test_greedy_ignores_filters_and_seed():
    assert drawn(LOGITS, draws=20, top_k=3, top_p=0.3, min_p=0.5) == {1: 20}


def test_the_filters_keep_the_lowest_of_equals():
    ties = np.zeros(10, np.float32)
    assert set(drawn(ties, draws=200, temperature=1.0, top_k=3)) == {0, 1, 2}
    assert set(drawn(ties, draws=200, temperature=1.0, top_p=0.25)) == {0, 1, 2}
    assert set(drawn(ties, draws=300, temperature=1.0, min_p=1.0)) == set(range(10))


def test_a_seed_repeats_and_another_differs():
    def sequence(seed):
        sampler = Sampler(Sampling(temperature=1.0, seed=seed))
        return [sampler.choose(np.zeros(1000, np.float32)) for _ in range(8)]

    assert sequence(3) == sequence(3)
    assert sequence(3) != sequence(4)
    assert sequence(None) != sequence(None)


def test_repetition_penalty_divides_what_is_positive_and_multiplies_what_is_negative():
    logits = np.array([4.0, 3.0, 1.0], np.float32)
    assert Sampler(Sampling(repetition_penalty=1.2), seen=[0]).choose(logits) == 0  # 4 / 1.2 = 3.33
    assert Sampler(Sampling(repetition_penalty=1.5), seen=[0]).choose(logits) == 1  # 4 / 1.5 = 2.67
    assert Sampler(Sampling(repetition_penalty=1.5)).choose(logits) == 0
    negative = np.array([-1.0, -1.4, -9.0], np.float32)
    assert Sampler(Sampling(repetition_penalty=1.3), seen=[0]).choose(negative) == 0
    assert Sampler(Sampling(repetition_penalty=1.5), seen=[0]).choose(negative) == 1
    assert Sampler(Sampling(repetition_penalty=0.5), seen=[1]).choose(negative) == 1  # below 1 it invites


def test_repetition_penalty_counts_what_was_chosen_and_each_id_once():
    logits = np.array([4.0, 3.0, 2.0], np.float32)
    sampler = Sampler(Sampling(repetition_penalty=10.0))
    assert [sampler.choose(logits) for _ in range(3)] == [0, 1, 2]
    twice = Sampler(Sampling(repetition_penalty=1.2), seen=[0, 0, 0])
    assert twice.choose(logits) == 0


def test_the_caller_keeps_its_logits():
    logits = np.array([4.0, np.nan, 2.0], np.float32)
    before = logits.copy()
    Sampler(Sampling(temperature=1.0, repetition_penalty=2.0, seed=0), seen=[0]).choose(logits)
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("temperature", [0.0, 1e-310, 1e-30, 1.0, 1e300])
def test_odd_logits_give_a_token_that_can_be_meant(temperature):
    def choose(values):
        return Sampler(Sampling(temperature=temperature, seed=1)).choose(np.array(values, np.float32))

    assert choose([np.nan, 1.0, np.nan]) == 1
    assert choose([-np.inf, -np.inf, -5.0]) == 2
    assert choose([0.0, np.inf, 3e38]) == 1
    assert choose([0.0, np.inf, np.inf]) == 1
    if temperature <= 1:  # at 1e300 both are as likely
        assert choose([3e38, -3e38]) == 0


def test_an_extreme_temperature_is_no_trap():
    assert set(drawn(LOGITS, draws=50, temperature=1e-310)) == {1, 5}  # equals stay equal


@pytest.mark.parametrize(
    ("penalty", "chosen"),
    [
        (1e-320, {0}),  # all above 0 are infinite, and the lowest id is taken
        (1e-300, {1, 5}),  # far apart, but for the equals
        (1e300, {0, 1, 3, 4, 5, 7}),  # all that were not below 0 are equals
    ],
)
def test_an_extreme_penalty_is_no_trap(penalty, chosen):
    samplings = [Sampling(temperature=1.0, repetition_penalty=penalty, seed=seed) for seed in range(50)]
    assert {Sampler(sampling, seen=range(8)).choose(LOGITS) for sampling in samplings} == chosen


def test_presence_and_frequency_penalties_count_what_was_made_and_not_the_prompt():
    logits = np.array([4.0, 3.5, 2.2], np.float32)
    presence = Sampler(Sampling(presence_penalty=1.0), seen=[0])
    assert [presence.choose(logits) for _ in range(5)] == [0, 1, 0, 0, 0]  # once each: 3, 2.5, 2.2
    frequency = Sampler(Sampling(frequency_penalty=1.0), seen=[0])
    assert [frequency.choose(logits) for _ in range(5)] == [0, 1, 0, 1, 2]  # 4 3.5 3 2.5 2.2
    inviting = Sampler(Sampling(presence_penalty=-1.0))
    assert [inviting.choose(np.array([1.0, 1.0], np.float32)) for _ in range(3)] == [0, 0, 0]


def test_logit_bias_comes_before_the_penalties():
    logits = np.array([1.0, 2.0, 3.0], np.float32)
    assert Sampler(Sampling(logit_bias={0: 2.5})).choose(logits) == 0
    assert Sampler(Sampling(logit_bias={2: -100})).choose(logits) == 1
    assert Sampler(Sampling(logit_bias={0: 6.0}, repetition_penalty=2.0), seen=[0]).choose(logits) == 0  # 7 / 2
    assert Sampler(Sampling(logit_bias={0: 4.0}, repetition_penalty=2.0), seen=[0]).choose(logits) == 2  # 5 / 2


def test_logprobs_are_those_of_the_model_itself():
    choice = with_logprobs(3, LOGITS, top=3)
    total = math.log(math.fsum(math.exp(float(x)) for x in LOGITS))
    assert choice.token == 3
    assert choice.logprob == pytest.approx(2.5 - total)
    assert [token for token, _ in choice.top] == [1, 5, 3]
    assert [logprob for _, logprob in choice.top] == pytest.approx([3 - total, 3 - total, 2.5 - total])


@pytest.mark.parametrize("values", [[np.nan] * 3, [-np.inf] * 3, [np.nan, -np.inf]])
def test_no_usable_logit_is_one_sentence(values):
    with pytest.raises(UsageError, match="no usable logits"):
        Sampler(Sampling(temperature=1.0)).choose(np.array(values, np.float32))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-0.1, math.nan, math.inf, "1", None]),
        ("top_k", [-1, 1.5, "3", None]),
        ("top_p", [0, -1, 1.01, math.nan, "x"]),
        ("min_p", [-0.1, 1.1, math.nan, "x"]),
        ("repetition_penalty", [0, -1, math.inf, math.nan, "x"]),
        ("presence_penalty", [math.inf, math.nan, "x", None]),
        ("frequency_penalty", [-math.inf, math.nan, "x", None]),
        ("logit_bias", [[(1, 2.0)], "x", None, 5]),
        ("seed", [-1, 0.5, "x", 2**64]),
    ],
)
def test_a_bad_value_is_named_with_its_rule(name, values):
    for value in values:
        with pytest.raises(UsageError, match=rf"^{name} is .*, but must be ") as caught:
            Sampling(**{name: value})
        assert str(value) in str(caught.value)


@pytest.mark.parametrize("bias", [{"a": 1.0}, {0.5: 1.0}, {1: "x"}, {1: math.nan}, {1: -math.inf}, {1: None}])
def test_a_bad_bias_is_refused(bias):
    with pytest.raises(UsageError, match=r"^logit_bias has .*, but must be "):
        Sampling(logit_bias=bias)


def test_values_of_numpy_mean_what_those_of_python_do():
    theirs = Sampling(temperature=np.float32(0.5), top_k=np.int64(3), top_p=np.float64(0.75), seed=np.int32(1))
    ours = Sampling(temperature=0.5, top_k=3, top_p=0.75, seed=1)
    assert theirs == ours
    one, other = Sampler(theirs), Sampler(ours)
    tokens = [one.choose(LOGITS) for _ in range(40)]
    assert tokens == [other.choose(LOGITS) for _ in range(40)]
    assert len({*tokens}) > 1
