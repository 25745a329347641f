"""Vocabularies are compared by the text of their tokens: what fits, how fast it is, what it learns."""

import dataclasses
import math

import numpy as np
import pytest

from mobilemoe import accounting
from mobilemoe.scaling.law.published import published
from mobilemoe.scaling.plan.limits import Constraints
from mobilemoe.scaling.plan.plan import plan
from mobilemoe.scaling.plan.space import Space
from mobilemoe.scaling.plan.vocabulary import BYTES_PER_TOKEN, bits_per_byte, bytes_per_token, text_of_tokens
from scaling_runs import PHONE

SMALL = Space(experts=(1, 2, 4, 8), granularities=(1, 8), widths=(512, 768, 1024, 1280), head_dims=(64,))
SIZES = (128_256, 65_536, 16_384, 4096)
SEVERAL = dataclasses.replace(SMALL, vocabularies=SIZES)
ASKED = Constraints(memory=0.6e9, decode=20, ttft=6, train_flops=8e20)


def test_a_larger_vocabulary_holds_more_text_in_a_token_and_gains_less_and_less():
    sizes, held = map(np.array, (list(BYTES_PER_TOKEN), list(BYTES_PER_TOKEN.values())))
    gains = np.diff(held) / np.diff(np.log(sizes))
    assert np.all(gains > 0)
    assert np.all(np.diff(gains) < 0)
    assert bytes_per_token(8192) == BYTES_PER_TOKEN[8192]
    assert held[0] < bytes_per_token(5000) < BYTES_PER_TOKEN[8192]
    assert bytes_per_token(4000) is None is bytes_per_token(200_000)
    assert text_of_tokens((777_777,)) == {777_777: 1.0}
    assert text_of_tokens((128_256, 777_777)) is None


def test_bits_per_byte_are_nats_a_token_over_its_bytes():
    assert bits_per_byte(2.0, 65_536) == pytest.approx(2.0 / math.log(2) / BYTES_PER_TOKEN[65_536])
    assert bits_per_byte(2.0, 777_777) is None


def test_a_body_is_as_good_whatever_its_vocabulary_and_costs_what_its_own_tokens_cost():
    found = plan(Constraints(tokens=300e9, flops=9e9), space=SEVERAL, device=PHONE)
    table, text = found.table, text_of_tokens(SIZES)
    own = {size: table.take(table.vocab_size == size) for size in SIZES}
    losses = {size: found.losses[table.vocab_size == size] for size in SIZES}
    for size in SIZES[1:]:
        np.testing.assert_allclose(losses[size], losses[SIZES[0]], rtol=1e-12)  # the same layers, the same text
        assert np.all(own[size].weights < own[SIZES[0]].weights)
        assert np.all(own[size].kv > own[SIZES[0]].kv)  # more tokens for the same text
        np.testing.assert_allclose(own[size].tokens(found.constraints), 300e9 / text[size])
    row = own[4096]
    shape = row.shapes[row.block[0]]
    seconds = PHONE.decode_seconds(shape, math.ceil(4096 / text[4096]))[row.place[0]]
    assert row.decode[0] == pytest.approx(text[4096] / seconds)
    assert row.ttft[0] == pytest.approx(PHONE.prefill_seconds(shape, math.ceil(1024 / text[4096]))[row.place[0]])


def test_with_training_flops_a_smaller_vocabulary_reads_fewer_bytes_for_each_token():
    table = plan(Constraints(memory=1e9, train_flops=8e20), space=SEVERAL).table
    for size, held in text_of_tokens(SIZES).items():
        own = table.take(table.vocab_size == size)
        read = own.points(Constraints(train_flops=8e20)).tokens * 1e9
        np.testing.assert_allclose(read, held * 8e20 / (6 * own.n_active))


def test_one_ranking_holds_all_vocabularies_and_its_first_has_the_least_score():
    found = plan(ASKED, space=SEVERAL, device=PHONE, top=100)
    assert [best.vocabulary for best in found.vocabularies] == [*SIZES]
    scores = [c.score for c in found.candidates]
    assert scores == sorted(scores)
    assert scores[0] == min(best.score for best in found.vocabularies)
    first = found.candidates[0]
    assert first.bits_per_byte == pytest.approx(bits_per_byte(first.loss, SIZES[0]))
    assert first.kv == accounting.kv_bytes(
        first.config, math.ceil(4096 / text_of_tokens(SIZES)[first.config.vocab_size])
    )


def test_each_vocabulary_alone_is_as_before():
    alone = plan(ASKED, space=SMALL, device=PHONE)
    assert alone.vocabularies == ()
    assert alone.candidates[0].bits_per_byte is None
    both = plan(ASKED, space=dataclasses.replace(SMALL, vocabularies=(128_256, 300_000)), device=PHONE)
    assert both.candidates[: len(alone.candidates)] == alone.candidates
    assert published("paper-joint").loss(alone.table.points(ASKED))[0] == alone.losses[0]


@pytest.mark.parametrize("name", ["memory", "decode", "ttft", "train_flops"])
def test_relaxing_a_limit_never_worsens_the_choice_among_vocabularies(name):
    score = math.inf
    for by in (1.0, 1.1, 1.3, 2.0):
        value = getattr(ASKED, name)
        relaxed = dataclasses.replace(ASKED, **{name: value / by if name == "decode" else value * by})
        found = plan(relaxed, space=SEVERAL, device=PHONE, top=1)
        assert found.candidates[0].score <= score
        assert all(relief.buys >= 0 for relief in found.reliefs)
        score = found.candidates[0].score
