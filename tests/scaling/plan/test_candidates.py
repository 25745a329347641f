"""The table of candidates: every model once, its columns those of accounting, its limits kept, its groups apart."""

import dataclasses
import math

import numpy as np
import pytest

from mobilemoe import accounting
from mobilemoe.errors import UsageError
from mobilemoe.scaling.law.published import published
from mobilemoe.scaling.plan.candidates import FINEST_PRIOR, WEIGHT_BITS_PRIOR, Table, groups, tabulate
from mobilemoe.scaling.plan.limits import DEFAULT_TOKENS, MOST_CONTEXT, MOST_PROMPT, Constraints
from mobilemoe.scaling.plan.space import Space, config_of
from refusals import refusal
from scaling_runs import PHONE

LAW = published("paper-joint")
SPACE = Space(
    experts=(1, 4),
    granularities=(2, 16),
    widths=(512, 640),
    ratios=(30, 40),
    head_dims=(64, 128),
    vocabularies=(32_000, 128_256),
    tied=(True, False),
    weight_bits=(4, 8, 16),
    kv_bits=(8, 16),
)
ASKED = Constraints(memory=0.3e9, flops=0.5e9, tokens=2e11, context=2048, prompt=512)


@pytest.fixture(scope="module")
def table() -> Table:
    return tabulate(SPACE, LAW, PHONE, ASKED)


def test_every_shape_is_there_once_for_each_number_of_bits(table):
    shapes = sum(len(block) for block in table.shapes)
    assert len(table) == shapes * len(SPACE.weight_bits) * len(SPACE.kv_bits)
    each = np.stack([table.block, table.place, table.weight_bits, table.kv_bits])
    assert np.unique(each, axis=1).shape[1] == len(table)


def test_each_row_says_what_accounting_counts_of_that_model(table):
    for row in np.random.default_rng(0).choice(len(table), 60, replace=False):
        config = config_of(table.shapes[table.block[row]], int(table.place[row]), ASKED.context)
        bits, kv_bits = int(table.weight_bits[row]), int(table.kv_bits[row])
        context, prompt = (math.ceil(length / table.text[row]) for length in (ASKED.context, ASKED.prompt))
        first = (SPACE.vocabularies[0] - config.vocab_size) * config.hidden_size
        assert table.weights[row] == accounting.file_bytes(config, bits)
        assert table.kv[row] == accounting.kv_bytes(config, context, kv_bits)
        assert table.memory[row] == table.weights[row] + table.kv[row]
        assert table.flops[row] == accounting.decode_flops(config) == 2 * table.n_active[row]
        assert table.n_total[row] == accounting.total_parameters(config)
        assert table.n_law[row] == table.n_active[row] + first  # the paper's law may count the embedding
        assert (table.vocab_size[row], table.tied[row]) == (config.vocab_size, config.tie_word_embeddings)
        assert table.ttft[row] == pytest.approx(PHONE.prefill_seconds(config, prompt))
        if bits == 4:
            assert table.decode[row] == pytest.approx(table.text[row] / PHONE.decode_seconds(config, context))


def test_a_device_adds_the_process_s_memory_and_a_margin_to_speeds_where_it_knows_them(table):
    assert np.array_equal(table.decode, table.decode_least)
    assert np.array_equal(table.ttft, table.ttft_most)
    known = dataclasses.replace(PHONE, error=0.2, process_weights=1.5, process_kv=4.0)
    measured = tabulate(SPACE, LAW, known, ASKED)
    np.testing.assert_allclose(measured.memory, 1.5 * table.weights + 4 * table.kv)
    np.testing.assert_allclose(measured.decode_least, 0.8 * table.decode)
    np.testing.assert_allclose(measured.ttft_most, table.ttft / 0.8)
    assert np.array_equal(measured.decode, table.decode)
    # 10 tokens/s predicted are 8 at worst, which a limit of 8.1 does not accept.
    bound = float(measured.decode.max())
    assert not measured.allowed(Constraints(decode=0.81 * bound)).any()
    assert measured.allowed(Constraints(decode=0.79 * bound)).any()


def test_the_family_s_depth_is_preferred_by_no_more_than_the_law_s_error(table):
    preference = table.preference(0.01)
    assert np.all(preference[table.departure == 0] == 0)
    assert preference.max() == 0.01
    small = table.departure < 1
    np.testing.assert_allclose(preference[small], 0.01 * table.departure[small])


def test_more_bits_decode_slower_by_their_bytes_alone(table):
    by_bits = [table.take(table.weight_bits == bits) for bits in (4, 8, 16)]
    for four, more in ((by_bits[0], by_bits[1]), (by_bits[0], by_bits[2])):
        assert np.all(more.decode < four.decode)
        assert np.array_equal(more.ttft, four.ttft)
    shape = by_bits[0].shapes[0]
    added = accounting.decode_bytes(shape, 0, weight_bits=8) - accounting.decode_bytes(shape, 0)
    first = [part.take((part.block == 0) & (part.kv_bits == 8)) for part in by_bits]
    np.testing.assert_allclose(1 / first[1].decode - 1 / first[0].decode, added / PHONE.weight_bandwidth, rtol=1e-9)


def test_a_law_that_leaves_the_embedding_out_gets_n_without_it():
    table = tabulate(SPACE, dataclasses.replace(LAW, counts_embedding=False), None, ASKED)
    for row in (0, len(table) // 2, len(table) - 1):
        config = config_of(table.shapes[table.block[row]], int(table.place[row]), ASKED.context)
        assert table.n_active[row] - table.n_law[row] == config.vocab_size * config.hidden_size
    assert np.isnan(table.decode).all()  # without a device
    assert np.isnan(table.ttft).all()


def test_allowed_are_those_within_every_limit_and_one_may_be_left_out(table):
    asked = dataclasses.replace(ASKED, decode=60.0, ttft=0.5)
    expected = (table.memory <= 0.3e9) & (table.flops <= 0.5e9) & (table.decode >= 60) & (table.ttft <= 0.5)
    np.testing.assert_array_equal(table.allowed(asked), expected)
    without = (table.flops <= 0.5e9) & (table.decode >= 60) & (table.ttft <= 0.5)
    np.testing.assert_array_equal(table.allowed(asked, without="memory"), without)
    assert 0 < expected.sum() < without.sum() < len(table)
    assert table.allowed(Constraints()).all()


def test_the_training_is_as_long_as_its_tokens_or_its_flops_say(table):
    np.testing.assert_allclose(table.text * table.tokens(Constraints(tokens=2e11)), 2e11)
    np.testing.assert_allclose(table.text * table.tokens(Constraints()), DEFAULT_TOKENS)
    first = table.take(table.vocab_size == SPACE.vocabularies[0])
    assert {*first.tokens(Constraints(tokens=2e11))} == {2e11}
    np.testing.assert_allclose(6 * table.n_active * table.tokens(Constraints(train_flops=1e20)), 1e20)


def test_points_are_the_candidates_in_the_laws_units(table):
    points = table.points(ASKED)
    np.testing.assert_array_equal(points.n_active, table.n_law / 1e9)
    assert {*points.tokens} == {200.0}
    for name in ("experts", "granularity", "shared"):
        np.testing.assert_array_equal(getattr(points, name), getattr(table, name))


def test_the_prior_is_that_of_the_bits_and_of_the_finest_experts(table):
    four, finest = table.weight_bits == 4, table.granularity == 16
    assert {*table.prior[four & ~finest]} == {WEIGHT_BITS_PRIOR[4]}
    assert {*table.prior[~four & finest]} == {FINEST_PRIOR}
    assert {*table.prior[~four & ~finest]} == {0.0}
    np.testing.assert_allclose(table.prior[four & finest], WEIGHT_BITS_PRIOR[4] + FINEST_PRIOR)


def test_models_of_the_same_tying_are_comparable_and_of_every_vocabulary_whose_text_is_known(table):
    row = 5
    config = config_of(table.shapes[table.block[row]], int(table.place[row]), ASKED.context)
    alike = table.comparable(config)
    assert {*table.vocab_size[alike]} == {32_000, 128_256}
    np.testing.assert_array_equal(alike, table.tied == config.tie_word_embeddings)
    apart = dataclasses.replace(table, by_text=False)
    np.testing.assert_array_equal(apart.comparable(config), alike & (table.vocab_size == config.vocab_size))


def test_groups_part_the_table_by_design_choices_and_bits(table):
    found = [*groups(table)]
    names = ("experts", "granularity", "shared", "weight_bits", "kv_bits")
    values = [{tuple(getattr(table, name)[place] for name in names) for place in places} for places in found]
    assert all(len(group) == 1 for group in values)
    assert len(set.union(*values)) == len(found)
    assert sorted(np.concatenate(found)) == [*range(len(table))]


def test_what_is_taken_keeps_its_rows_and_its_shapes(table):
    mask = table.memory < np.median(table.memory)
    part = table.take(mask)
    assert len(part) == mask.sum()
    assert part.shapes is table.shapes
    np.testing.assert_array_equal(part.memory, table.memory[mask])


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"memory": "1GB"}, "memory is 1GB, but must be a number above 0"),
        ({"train_flops": 0}, "train_flops is 0"),
        ({"prompt": MOST_PROMPT + 1}, f"prompt is {MOST_PROMPT + 1}, but may be no more than {MOST_PROMPT}"),
        ({"context": MOST_CONTEXT * 2}, f"but may be no more than {MOST_CONTEXT}"),
        ({"train_flops": 1e20, "tokens": 1e9}, "either `train_flops` or `tokens`"),
    ],
)
def test_limits_that_cannot_be_are_refused_by_name(limits, words):
    assert words in refusal(lambda: Constraints(**limits), UsageError)
