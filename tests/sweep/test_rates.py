"""The best learning rate is read off losses at several, and the rule is the one nearest to all of them."""

import math

import pytest

from mobilemoe.errors import DataError
from mobilemoe.sweep.rates import best_rates, fit_rule
from refusals import refusal


def row(width, rate, loss, experts=1, factor=1.0):
    knobs = {"experts": experts, "granularity": 1, "shared": 0, "hidden_size": width, "tokens": 1000}
    return {name: str(value) for name, value in (knobs | {"learning_rate": rate, "rate": factor, "loss": loss}).items()}


def test_the_best_rate_is_the_lowest_point_of_a_parabola():
    def loss(rate, best):
        return 3 + 0.1 * math.log(rate / best) ** 2

    rows = []
    for experts, shift in ((1, 1.0), (8, 1.2)):
        for width in (128, 256, 512):
            best = shift * 4e-3 * (256 / width) ** 0.7
            rule = 3e-3 * (256 / width) ** 0.7
            rows += [row(width, rule * f, loss(rule * f, best), experts, f) for f in (0.5, 1, 2)]
    found = best_rates(rows)
    assert [(best.arm, best.hidden_size) for best in found[:3]] == [("dense", 128), ("dense", 256), ("dense", 512)]
    assert found[1].rate == pytest.approx(4e-3)
    assert found[1].inside
    assert found[1].gain == pytest.approx(0.1 * math.log(4 / 3) ** 2)
    rule = fit_rule(found[:3], 256, 0.5)
    assert (rule.learning_rate, rule.width_exponent) == (pytest.approx(4e-3, rel=1e-3), pytest.approx(0.7, abs=1e-3))
    assert fit_rule(found, 256, 0.5).spread == pytest.approx(1.2**0.5)
    assert fit_rule(found[1:2], 256, 0.5).width_exponent == 0.5


def test_an_end_of_the_rates_is_said_to_be_one():
    (best,) = best_rates([row(256, rate, 3 + rate) for rate in (0.1, 0.2, 0.4)])
    assert (best.rate, best.inside) == (pytest.approx(0.1), False)


def test_seeds_are_averaged_before_the_parabola_is_laid_through():
    rows = [row(256, rate, loss) for rate, loss in ((0.1, 3.2), (0.1, 3.4), (0.2, 3.0), (0.4, 3.3))]
    (best,) = best_rates(rows)
    assert best.losses == pytest.approx({0.1: 3.3, 0.2: 3.0, 0.4: 3.3})
    assert best.rate == pytest.approx(0.2)


def test_a_hill_has_no_lowest_point_inside():
    (best,) = best_rates([row(256, rate, loss) for rate, loss in ((0.1, 3.0), (0.2, 3.5), (0.4, 3.1))])
    assert (best.rate, best.inside) == (pytest.approx(0.1), False)


def test_fewer_than_three_rates_say_nothing_of_a_model():
    two = [row(256, rate, 3.0) for rate in (0.1, 0.2)]
    assert "at three learning rates" in refusal(lambda: best_rates(two), DataError)
    assert len(best_rates([*two, *(row(128, rate, 3.0 + rate) for rate in (0.1, 0.2, 0.4))])) == 1


def test_lengths_and_mixtures_are_models_of_their_own_the_dense_first():
    rates = (0.1, 0.2, 0.4)
    models = [(experts, tokens) for experts in (8, 1) for tokens in ("2000", "1000")]
    rows = [row(256, at, abs(at - 0.2), experts) | {"tokens": tokens} for experts, tokens in models for at in rates]
    found = best_rates(rows)
    assert [(best.arm, best.tokens) for best in found] == [
        *(("dense", 1000), ("dense", 2000)),
        *(("e8g1s0", 1000), ("e8g1s0", 2000)),
    ]
    assert [best.dense for best in found] == [True, True, False, False]


def test_a_gain_is_counted_from_the_rate_that_the_rule_gives():
    def loss(rate: float) -> float:
        return 3 + 0.1 * math.log(rate / 0.2) ** 2

    at_best, off = (
        best_rates([row(256, rate * by, loss(rate * by), factor=rate) for rate in (0.5, 1, 2)])[0] for by in (0.2, 0.1)
    )
    assert at_best.gain == pytest.approx(0, abs=1e-9)
    assert off.gain == pytest.approx(0.1 * math.log(2) ** 2)


def test_a_rule_says_how_far_the_best_rates_lie_from_it():
    widths, rates = (128, 256, 512), (0.1, 0.2, 0.4)
    bests = best_rates([row(width, rate, abs(math.log(rate / 0.2))) for width in widths for rate in rates])
    rule = fit_rule(bests, 256, 0.7)
    assert (rule.learning_rate, rule.width_exponent, rule.spread) == (pytest.approx(0.2), 0, pytest.approx(1))
