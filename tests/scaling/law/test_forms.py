"""Each form is its formula: written out by hand, in any unit, and without what it has no term for."""

import math

import numpy as np
import pytest

from mobilemoe.errors import UsageError
from mobilemoe.scaling import Points
from mobilemoe.scaling.law.forms import BLANK, E_MAX, FORMS, INDEX, NAMES, PHI, effective_experts, form_named, in_units
from refusals import refusal

N, D, E, G, S = 0.4, 250.0, 8.0, 4.0, 1.0
POINT = Points(n_active=N, tokens=D, experts=E, granularity=G, shared=S)
NUMBERS = {"A": 0.4, "delta": -0.1, "alpha": -0.3, "gamma": 0.02, "kappa": 0.12, "phi": 0.7, "sigma": 0.05}
NUMBERS |= {"B": 0.9, "omega": 0.15, "beta": -0.35, "zeta": -0.03, "c": 1.8, "E_max": 50.0}


def by_hand(name: str) -> float:
    """The loss at POINT as each formula is printed, in plain Python."""
    A, delta, alpha, gamma, kappa, phi, sigma, B, omega, beta, zeta, c, E_max = (NUMBERS[name] for name in NAMES)
    plain = A * N**alpha + B * D**beta + c
    fine = 1 - kappa + kappa * G**-phi

    def knob(x: float) -> float:
        ln = math.log(x)
        return A * x**delta * N ** (alpha + gamma * ln) + B * x**omega * D ** (beta + zeta * ln) + c

    def experts(most: float) -> float:
        return 1 / (1 / (E - 1 + 1 / (1 - 1 / most)) + 1 / most)

    ours = experts(32)
    ln = math.log(ours)
    return {
        "chinchilla": plain,
        "paper-E": knob(1 / (1 / (E + 1 / 31) + 1 / 32)),
        "root": (knob(1 / (1 / (E + 1 / 31) + 1 / 32)) - c) ** 0.58 + c,
        "paper-g": knob(G),
        "paper-s": knob(math.e**S),
        "joint-moe": knob(experts(E_max)),
        "fine-grained": A * fine * N**alpha + B * D**beta + c,
        "joint": A * ours**delta * N ** (alpha + gamma * ln) * fine * math.exp(-sigma * S)
        + B * ours**omega * D ** (beta + zeta * ln)
        + c,
    }[name]


def theta_of(name: str) -> np.ndarray:
    return np.array([NUMBERS[parameter] for parameter in FORMS[name].parameters])


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_its_printed_formula(name):
    assert float(FORMS[name].loss(theta_of(name), POINT)) == pytest.approx(by_hand(name), rel=1e-12)


@pytest.mark.parametrize("name", FORMS)
def test_what_a_form_has_no_column_for_moves_nothing(name):
    form, theta = FORMS[name], theta_of(name)
    at = {"experts": E, "granularity": G, "shared": S}
    for column in {*at} - {*form.columns}:
        other = Points(n_active=N, tokens=D, **at | {column: 0 if column == "shared" else 2})
        assert form.loss(theta, other) == form.loss(theta, POINT), column
    for column in form.columns:
        other = Points(n_active=N, tokens=D, **at | {column: 0 if column == "shared" else 2})
        assert form.loss(theta, other) != form.loss(theta, POINT), column


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("units", [(1e-3, 1e3), (7.0, 0.02), (1 / 1e9, 1 / 1e9)], ids=str)
def test_in_other_units_the_same_constants_give_the_same_loss(name, units):
    form, (n_unit, d_unit) = FORMS[name], units
    other = Points(n_active=N / n_unit, tokens=D / d_unit, experts=E, granularity=G, shared=S)
    changed = in_units(theta_of(name), form, n_unit, d_unit)
    assert float(form.loss(changed, other)) == pytest.approx(by_hand(name), rel=1e-12)
    np.testing.assert_allclose(in_units(changed, form, 1 / n_unit, 1 / d_unit), theta_of(name), rtol=1e-10)


def test_a_change_of_units_leaves_its_argument_alone():
    theta = theta_of("joint")
    before = theta.copy()
    in_units(theta, FORMS["joint"], 10, 10)
    np.testing.assert_array_equal(theta, before)


@pytest.mark.parametrize("name", FORMS)
def test_a_whole_row_has_no_effect_where_the_form_has_no_parameter(name):
    form = FORMS[name]
    whole = form.full(np.array([theta_of(name)] * 3))
    assert whole.shape == (3, len(NAMES))
    for parameter in NAMES:
        expected = NUMBERS[parameter] if parameter in form.parameters else BLANK[INDEX[parameter]]
        assert np.all(whole[:, INDEX[parameter]] == expected), parameter
    assert (BLANK[INDEX["phi"]], BLANK[INDEX["E_max"]]) == (PHI, E_MAX)


@pytest.mark.parametrize("most", [2.0, 32.0, 300.0])
def test_experts_count_one_by_one_at_first_and_saturate_at_the_most(most):
    assert effective_experts(1.0, most) == pytest.approx(1, rel=1e-12)
    assert effective_experts(1e12, most) == pytest.approx(most, rel=1e-6)
    gains = np.diff(effective_experts(np.arange(1.0, 100), most))
    assert np.all(gains > 0)
    assert np.all(np.diff(gains) < 0)  # each further expert counts less


def test_a_form_is_found_by_its_name_and_another_name_lists_them():
    assert form_named("joint") is FORMS["joint"]
    sentence = refusal(lambda: form_named("jiont"), UsageError)
    assert all(name in sentence for name in FORMS)
