"""The laws: spec section 4's numbers, what reduces to what, where a law refuses or warns, and its file."""

import json

import numpy as np
import pytest

from mobilemoe.errors import DataError, UsageError
from mobilemoe.scaling import Law, Points, published
from mobilemoe.scaling.law.forms import FORMS, NAMES, effective_experts
from refusals import refusal
from scaling_runs import joint_law, paper_sweep

CHECKS = {(0.3, 100): {1: 2.4461, 8: 2.3795, 32: 2.3759}}
CHECKS[0.9, 500] = {1: 2.3009, 2: 2.2701, 4: 2.2648, 8: 2.2703, 32: 2.2885}


@pytest.mark.parametrize("name", ["paper-E", "paper-joint"])
def test_the_papers_law_has_the_check_values_of_spec_4(name):
    for (n, d), losses in CHECKS.items():
        found = published(name).loss(Points(n_active=n, tokens=d, experts=[*losses]))
        assert [round(float(loss), 4) for loss in found] == [*losses.values()]


def test_beyond_500_billion_tokens_the_papers_law_misleads_and_says_so():
    law = published("paper-E")
    asked = Points(n_active=0.9, tokens=6000, experts=[1, 8])
    dense, sparse = law.loss(asked)
    assert dense < sparse
    (sentence,) = law.outside(asked)
    assert "tokens is 6000B" in sentence
    assert "100B to 500B" in sentence
    assert law.outside(Points(n_active=0.9, tokens=500, experts=[1, 8])) == []


def test_outside_has_a_sentence_for_each_column_that_leaves_the_domain():
    sentences = published("paper-joint").outside(
        Points(n_active=[0.1, 0.5], tokens=50, experts=64, granularity=32, shared=2)
    )
    assert [sentence.split(" ")[0] for sentence in sentences] == [
        "n_active",
        "tokens",
        "experts",
        "granularity",
        "shared",
    ]


def test_the_count_of_experts_starts_at_1_and_saturates():
    assert effective_experts(1.0) == pytest.approx(1)
    assert effective_experts(1e9) == pytest.approx(32)
    assert np.all(np.diff(effective_experts(np.arange(1.0, 200))) > 0)


def test_the_joint_law_is_each_of_the_others_where_their_knobs_are_fixed():
    joint, points = joint_law(), paper_sweep()
    values = joint.parameters
    dense = points.at(points.experts == 1)
    parts = {name: values[name] for name in FORMS["chinchilla"].parameters}
    chinchilla = Law(form="chinchilla", parameters=parts, rmse=0, domain={}, source="")
    np.testing.assert_allclose(joint.loss(dense), chinchilla.loss(dense), rtol=1e-12)
    plain = points.at((points.granularity == 1) & (points.shared == 0))
    parts = {name: values[name] for name in FORMS["paper-E"].parameters}
    np.testing.assert_allclose(
        joint.loss(plain), Law(form="paper-E", parameters=parts, rmse=0, domain={}, source="").loss(plain), rtol=1e-12
    )
    fixed = points.at((points.experts == 8) & (points.shared == 0))
    x = float(np.log(effective_experts(8.0)))
    parts = {
        "A": values["A"] * np.exp(values["delta"] * x),
        "alpha": values["alpha"] + values["gamma"] * x,
        "B": values["B"] * np.exp(values["omega"] * x),
        "beta": values["beta"] + values["zeta"] * x,
        **{name: values[name] for name in ("kappa", "phi", "c")},
    }
    fine = Law(form="fine-grained", parameters=parts, rmse=0, domain={}, source="")
    np.testing.assert_allclose(joint.loss(fixed), fine.loss(fixed), rtol=1e-12)


@pytest.mark.parametrize("form", FORMS.values(), ids=lambda form: form.name)
def test_every_form_is_evaluated_over_points_and_parameters_at_once(form):
    draw = np.random.default_rng(3)
    theta = draw.uniform(0.1, 0.5, (4, len(form.parameters)))
    if "E_max" in form.parameters:
        theta[:, -1] = 40
    points = paper_sweep().at(slice(0, 6))
    square = Points(**{name: np.reshape(getattr(points, name), (2, 3)) for name in vars(points)})
    together = form.loss(theta, square)
    assert together.shape == (4, 2, 3)
    for row, each in zip(together, theta, strict=True):
        for place in range(6):
            np.testing.assert_allclose(row.ravel()[place], form.loss(each, points.at(place)), rtol=1e-12)
    assert form.formula.startswith("L = ")
    assert form.source
    assert {*form.parameters} <= {*NAMES}


def test_points_that_no_model_can_be_are_refused():
    for wrong in ({"n_active": 0}, {"tokens": -1}, {"experts": 0.5}, {"granularity": np.nan}, {"shared": -1}):
        sentence = refusal(lambda wrong=wrong: Points(**{"n_active": 1, "tokens": 1} | wrong))
        assert next(iter(wrong)) in sentence
    assert "fit together" in refusal(lambda: Points(n_active=[1, 2], tokens=[1, 2, 3]))


def test_a_law_without_samples_has_its_rmse_as_interval_and_says_so():
    law, points = published("paper-E"), Points(n_active=0.5, tokens=200, experts=[1, 8])
    low, high = law.interval(points)
    np.testing.assert_allclose(high - low, 2 * 0.0076)
    assert law.interval_kind == "RMSE of the fit"
    assert law.parameter_interval("A") is None
    assert published("paper-joint").prior


def test_an_interval_over_many_points_is_that_of_each(monkeypatch):
    theta = joint_law().theta
    samples = theta * np.random.default_rng(0).normal(1, 0.01, (50, len(theta)))
    law = Law(**vars(joint_law()) | {"samples": samples})
    points = paper_sweep()
    whole = law.interval(points, 0.8)
    monkeypatch.setattr("mobilemoe.scaling.law.law.VALUES_AT_ONCE", 120)
    np.testing.assert_allclose(law.interval(points, 0.8), whole)
    expected = np.quantile([float(FORMS["joint"].loss(row, points.at(7))) for row in samples], [0.1, 0.9])
    np.testing.assert_allclose([whole[0][7], whole[1][7]], expected)
    assert "level" in refusal(lambda: law.interval(points, 1.0))


def test_chinchillas_constants_come_back_in_plain_counts():
    plain = published("chinchilla").plain_counts()
    assert plain["A"] == pytest.approx(482.01)
    assert plain["B"] == pytest.approx(2085.43)
    assert (plain["alpha"], plain["beta"], plain["c"]) == (-0.3478, -0.3658, 1.8172)


def test_a_law_is_saved_and_loaded_whole(tmp_path):
    law = Law(
        **vars(joint_law())
        | {"samples": np.random.default_rng(0).normal(size=(5, 12)), "counts_embedding": True, "forecast_rmse": 0.01}
    )
    law.save(tmp_path / "law.json")
    again = Law.load(tmp_path / "law.json")
    np.testing.assert_allclose(again.samples, law.samples, rtol=1e-6)
    assert {**vars(again), "samples": None} == {**vars(law), "samples": None}


@pytest.mark.parametrize(
    "change",
    [
        {"form": "nonsense"},
        {"parameters": {"A": 1}},
        {"parameters": {"A": "x", "alpha": 1, "B": 1, "beta": 1, "c": 1}},
        {"parameters": 7},
        {"domain": {"tokens": 5}},
        {"domain": {"colour": [1, 2]}},
        {"rmse": None},
        {"forecast_rmse": "small"},
        {"forecast_rmse": float("nan")},
        {"left_out": 7},
        {"with_outliers": ["A"]},
        {"with_outliers": {"A": "large"}},
        {"hull": 7},
        {"version": [2]},
        {"samples": [[1, 2], [3, 4]]},
        {"samples": [[1], [1, 2]]},
    ],
    ids=str,
)
def test_a_file_that_is_no_law_is_refused_with_its_name(tmp_path, change):
    values = published("chinchilla").as_json() | change
    (tmp_path / "law.json").write_text(json.dumps(values))
    assert "law.json" in refusal(lambda: Law.load(tmp_path / "law.json"), DataError)


def test_names_that_are_unknown_are_answered_with_the_known():
    assert "paper-joint" in refusal(lambda: published("mine"))
    with pytest.raises(DataError, match="does not exist"):
        Law.load("no-such-law.json")
    with pytest.raises(UsageError, match="has the parameters A, alpha"):
        Law(form="chinchilla", parameters={}, rmse=0, domain={}, source="")
