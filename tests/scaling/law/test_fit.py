"""A fit finds the truth it was made from, holds what the runs cannot say, and predicts runs that it has not seen."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from mobilemoe.errors import DataError, UsageError
from mobilemoe.scaling import Law, Points, Runs, fit, published
from mobilemoe.scaling.law.compare import compare
from mobilemoe.scaling.law.fit import split
from mobilemoe.scaling.law.forms import FORMS, in_units
from mobilemoe.scaling.law.solver import HUBER, Problem, misfit
from refusals import refusal
from scaling_runs import joint_law, paper_sweep, runs_of

E_SWEEP = paper_sweep().at((paper_sweep().granularity == 1) & (paper_sweep().shared == 0))
KNOB = {"A": 0.3, "delta": -0.1, "alpha": -0.25, "gamma": 0.02, "B": 0.6, "omega": 0.2, "beta": -0.3, "zeta": -0.05}
CHINCHILLA = {"A": 0.3, "alpha": -0.3, "B": 1.0, "beta": -0.4, "c": 1.9}
TRUTHS = {
    "chinchilla": CHINCHILLA,
    "paper-E": published("paper-E").parameters,
    "root": KNOB | {"c": 1.9},
    "paper-g": KNOB | {"c": 1.9},
    "paper-s": KNOB | {"c": 1.9},
    "joint-moe": published("paper-E").parameters | {"E_max": 60.0},
    "fine-grained": CHINCHILLA | {"kappa": 0.15, "phi": 0.6},
    "joint": joint_law().parameters,
}


def law_of(form: str) -> Law:
    return Law(form=form, parameters=TRUTHS[form], rmse=0, domain={}, source="a truth made up for tests")


@pytest.mark.parametrize("form", FORMS)
def test_without_noise_every_constant_is_recovered_within_2_percent(form):
    found = fit(runs_of(law_of(form)), form)
    for name, truth in TRUTHS[form].items():
        assert found.law.parameters[name] == pytest.approx(truth, rel=0.02), name
    assert found.rmse < 1e-5
    assert found.converged
    assert found.free == FORMS[form].parameters


@pytest.mark.parametrize("n_unit", [1e-6, 1e4])
def test_tiny_and_huge_units_fit_as_well(n_unit):
    truth = law_of("paper-E")
    theta = in_units(truth.theta, FORMS["paper-E"], 1 / n_unit, 1 / n_unit)
    points = Points(n_active=E_SWEEP.n_active * n_unit, tokens=E_SWEEP.tokens * n_unit, experts=E_SWEEP.experts)
    runs = Runs(points=points, loss=1000 * truth.loss(E_SWEEP), ids=("r",) * 90, repeated=np.zeros(90, bool))
    found = fit(runs, "paper-E").law
    scaled = dict(zip(FORMS["paper-E"].parameters, theta, strict=True))
    for name in ("alpha", "beta", "gamma", "zeta", "delta", "omega"):
        assert found.parameters[name] == pytest.approx(scaled[name], rel=0.02), name
    assert found.parameters["c"] == pytest.approx(1973, rel=0.02)


def test_a_few_wild_runs_do_not_move_the_law_and_are_named():
    runs = runs_of(joint_law(), noise=0.001)
    runs.loss[[3, 50]] *= [1.5, 0.8]
    found = fit(runs)
    np.testing.assert_allclose(found.law.loss(runs.points), joint_law().loss(runs.points), atol=0.002)
    (note,) = (note for note in found.notes if "from the law" in note)
    assert "run-3" in note
    assert "run-50" in note


def test_without_outliers_the_law_is_fitted_again_and_its_file_says_what_was_left_out(tmp_path):
    runs = runs_of(joint_law(), noise=0.001)
    runs.loss[[3, 50]] *= [1.5, 0.8]
    kept = fit(runs)
    found = fit(runs, without_outliers=True, bootstraps=20)
    assert (len(found.runs), len(found.whole.runs)) == (208, 210)
    assert found.law.left_out == ("run-3", "run-50")
    assert found.law.parameters == kept.near.law.parameters != kept.law.parameters
    assert found.law.with_outliers == found.whole.law.parameters == kept.law.parameters
    assert found.rmse < 0.002 < found.whole.rmse
    found.law.save(tmp_path / "law.json")
    again = Law.load(tmp_path / "law.json")
    assert (again.left_out, again.with_outliers) == (found.law.left_out, found.law.with_outliers)


def test_where_no_run_is_far_none_is_left_out_and_fit_says_so():
    found = fit(runs_of(joint_law(), noise=0.002), without_outliers=True)
    assert (found.whole, found.law.left_out, found.law.with_outliers) == (None, (), None)
    assert any("none is left out" in note for note in found.notes)


def test_a_forecast_leaves_out_no_run_that_it_has_to_predict():
    runs = runs_of(joint_law(), noise=0.001)
    large = np.flatnonzero(runs.flops >= split(runs, 0.2)[1].flops.min())
    runs.loss[large[0]] *= 1.5
    runs.loss[3] *= 1.5
    found = fit(runs, without_outliers=True, holdout=0.2)
    assert {runs.ids[large[0]], "run-3"} == {*found.law.left_out}
    assert found.holdout.ids == split(runs, 0.2)[1].ids
    assert found.holdout.fitted_to == 210 - len(large) - 1
    assert found.holdout.rmse > 0.1
    assert (
        found.law.forecast_split == f"{len(large)} runs of the largest compute, by a fit to {209 - len(large)} others"
    )


@pytest.mark.parametrize("form", FORMS)
def test_the_slopes_are_those_of_the_residuals(form):
    law = law_of(form)
    problem = Problem(FORMS[form], runs_of(law, noise=0.01), FORMS[form].parameters)
    x = problem.coordinates(law.theta)
    np.testing.assert_allclose(problem.theta(x), law.theta, rtol=1e-9)
    residuals, slopes = problem.slopes(x[None])
    np.testing.assert_allclose(residuals, problem.residuals(x[None]), atol=1e-12)
    np.testing.assert_allclose(np.exp(residuals[0]) * problem.runs.loss, law.loss(problem.runs.points), rtol=1e-9)
    numeric = approx_fprime(x, lambda at: problem.residuals(at[None])[0], 1e-7)
    np.testing.assert_allclose(slopes[0].T, numeric, atol=2e-6)


def test_the_misfit_is_hubers():
    residuals = np.array([[0.0, HUBER / 2, -3 * HUBER]])
    expected = HUBER**2 / 8 + 2 * (HUBER * (3 * HUBER - HUBER / 2))
    assert misfit(residuals, np.array([[1.0, 1.0, 2.0]]))[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("pick", "held", "words"),
    [
        ("granularity == 1", {"kappa", "phi"}, "granularity does not vary"),
        ("shared == 0", {"sigma"}, "shared does not vary"),
        ("experts == 8", {"delta", "gamma", "omega", "zeta"}, "experts does not vary"),
        ("granularity <= 2", {"phi"}, "2 values"),
    ],
)
def test_a_knob_that_does_not_vary_is_held_at_no_effect_and_said(pick, held, words):
    runs = runs_of(joint_law())
    name, sign, value = pick.split()
    column = getattr(runs.points, name)
    part = runs.at(column == float(value) if sign == "==" else column <= float(value))
    found = fit(part)
    assert held <= {*FORMS["joint"].parameters} - {*found.free}
    assert all(found.law.parameters[name] == (0.58 if name == "phi" else 0) for name in held)
    assert any(words in note for note in found.notes)
    assert found.rmse < 1e-4


def test_a_product_term_that_the_design_cannot_show_is_held():
    pairs = [(0.3, 1), (0.5, 8), (0.9, 32)]  # E grows with N: nothing says what it would do at another N
    shown = np.array([pair in pairs for pair in zip(E_SWEEP.n_active, E_SWEEP.experts, strict=True)])
    found = fit(runs_of(law_of("paper-E"), E_SWEEP.at(shown)), "paper-E")
    assert "gamma" not in found.free
    assert "zeta" in found.free
    assert any("gamma is held at 0" in note for note in found.notes)


def test_too_few_runs_or_values_are_refused_in_a_sentence():
    runs = runs_of(joint_law())
    assert "11 runs" in refusal(lambda: fit(runs.at(slice(0, 210, 20))), DataError)
    same_size = runs.at(runs.points.n_active == 0.5)
    assert "n_active takes 1 value " in refusal(lambda: fit(same_size, "chinchilla"), DataError)
    assert "choose one of" in refusal(lambda: fit(runs, "linear"), UsageError)
    for wrong in ({"holdout": 0.9}, {"holdout": float("nan")}, {"bootstraps": -1}, {"seed": -1}):
        assert next(iter(wrong)) in refusal(lambda wrong=wrong: fit(runs, **wrong))


def test_the_runs_of_largest_compute_are_predicted_by_a_fit_that_never_saw_them():
    runs = runs_of(joint_law(), noise=0.002)
    rest, large = split(runs, 0.2)
    assert rest.flops.max() < large.flops.min()
    assert len(rest) + len(large) == 210
    held = fit(runs, holdout=0.2).holdout
    assert held.ids == large.ids
    assert held.mae <= held.rmse < 0.006
    runs.loss[runs.flops >= large.flops.min()] += 0.5
    assert fit(runs, holdout=0.2).holdout.rmse == pytest.approx(0.5, abs=0.01)


def test_runs_that_the_table_registers_are_those_predicted():
    runs = runs_of(joint_law(), noise=0.002)
    held_out = runs.points.tokens == runs.points.tokens.min()
    registered = Runs(**vars(runs) | {"held_out": held_out})
    found = fit(registered, holdout=None)
    assert found.holdout.registered
    assert found.holdout.ids == registered.at(held_out).ids
    assert found.law.forecast_rmse == found.holdout.rmse
    assert (
        found.law.forecast_split == f"{held_out.sum()} runs registered by the column held_out, by a fit to 168 others"
    )
    assert compare(registered)[0].holdout_rmse == pytest.approx(found.holdout.rmse)
    assert fit(registered, holdout=0.2).holdout.ids == split(runs, 0.2)[1].ids  # who asks for a share gets it
    for unmarked in (None, np.zeros(210, bool), np.ones(210, bool)):
        held = fit(Runs(**vars(runs) | {"held_out": unmarked}), holdout=None).holdout
        assert not held.registered
        assert held.ids == split(runs, 0.2)[1].ids


def test_where_the_rest_cannot_be_fitted_there_is_no_forecast_but_a_law():
    n = np.repeat([0.3, 0.5, 0.9], 3)
    points = Points(n_active=n, tokens=np.where(n == 0.9, 300, 100) + np.tile([0, 50, 100], 3))
    found = fit(runs_of(law_of("chinchilla"), points), "chinchilla", holdout=0.33)  # leaves two sizes
    assert found.holdout is None
    assert any("no forecast" in note for note in found.notes)
    assert found.rmse < 1e-4


def test_runs_that_repeat_data_are_fitted_apart():
    clean = runs_of(joint_law())
    repeated = np.arange(210) % 3 == 0
    runs = Runs(**vars(clean) | {"loss": clean.loss + 0.3 * repeated, "repeated": repeated})
    found = fit(runs)
    assert len(found.runs) == 140
    assert found.law.parameters["c"] == pytest.approx(1.973, abs=0.01)
    assert found.apart.law.parameters["c"] == pytest.approx(2.273, abs=0.02)
    assert any("repeated data" in note for note in found.notes)
    few = Runs(**vars(runs) | {"repeated": np.arange(210) < 3})
    assert fit(few).apart is None


def test_the_same_seed_gives_the_same_fit():
    runs = runs_of(joint_law(), noise=0.003)
    one, two = (fit(runs, bootstraps=40, seed=5).law for _ in range(2))
    assert one.parameters == two.parameters
    np.testing.assert_array_equal(one.samples, two.samples)
    assert fit(runs, bootstraps=40, seed=6).law.samples.tolist() != one.samples.tolist()


def test_the_law_that_made_the_runs_earns_its_parameters_and_beats_the_rivals():
    rows = compare(runs_of(joint_law(), noise=0.002))
    assert rows[0].name == "joint"
    assert {row.name for row in rows if row.rival} >= {"constant", "log-linear"}
    by_name = {row.name: row for row in rows}
    assert by_name["joint"].holdout_rmse < by_name["log-linear"].holdout_rmse
    assert by_name["constant"].parameters == 1
    dense = compare(runs_of(law_of("chinchilla"), E_SWEEP, noise=0.002))
    assert dense[0].name == "chinchilla"
