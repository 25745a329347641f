"""The rivals of a law are what they say they are, and the comparison is fair: the same runs, the same score."""

import numpy as np
import pytest

from mobilemoe.errors import DataError
from mobilemoe.scaling import Points, Runs, published
from mobilemoe.scaling.law.compare import RIVALS, better_forecast, compare, forecasts
from mobilemoe.scaling.law.fit import bic, fit
from refusals import refusal
from scaling_runs import paper_sweep, runs_of

E_SWEEP = paper_sweep().at(paper_sweep().granularity == 1)
RUNS = runs_of(published("paper-E"), E_SWEEP, noise=0.003)


def runs_with(loss, points=E_SWEEP) -> Runs:
    return Runs(points=points, loss=loss, ids=("r",) * len(points), repeated=np.zeros(len(points), bool))


def test_the_constant_rival_is_the_median():
    predict, parameters = RIVALS["constant"](RUNS)
    assert parameters == 1
    assert {*predict(E_SWEEP)} == {float(np.median(RUNS.loss))}


def test_the_log_linear_rival_finds_a_power_law_without_a_floor():
    p = E_SWEEP
    truth = 3.0 * p.n_active**-0.05 * p.tokens**-0.02 * p.experts**-0.01
    predict, parameters = RIVALS["log-linear"](runs_with(truth))
    assert parameters == 4  # N, D and E vary, g and s do not
    np.testing.assert_allclose(predict(p), truth, rtol=1e-6)
    beyond = Points(n_active=[2.0], tokens=900, experts=64)
    assert predict(beyond)[0] == pytest.approx(3.0 * 2**-0.05 * 900**-0.02 * 64**-0.01, rel=1e-6)


def test_the_log_linear_rival_is_not_moved_by_a_wild_run():
    truth = 3.0 * E_SWEEP.n_active**-0.05 * E_SWEEP.tokens**-0.02
    wild = truth.copy()
    wild[[4, 40]] *= [1.5, 0.6]
    np.testing.assert_allclose(RIVALS["log-linear"](runs_with(wild))[0](E_SWEEP), truth, rtol=2e-3)


def test_a_chinchilla_for_each_kind_predicts_its_kind_and_no_other():
    kinds = E_SWEEP.at(np.isin(E_SWEEP.experts, (1, 8)))
    runs = runs_of(published("paper-E"), kinds)
    predict, parameters = RIVALS["chinchilla per kind"](runs)
    assert parameters == 2 * 5
    np.testing.assert_allclose(predict(kinds), runs.loss, atol=1e-4)
    assert np.isnan(predict(Points(n_active=0.3, tokens=100, experts=[1, 4]))).tolist() == [False, True]


def test_one_kind_alone_or_one_with_too_few_runs_has_no_chinchilla_each():
    dense = RUNS.at(E_SWEEP.experts == 1)
    assert RIVALS["chinchilla per kind"](dense) is None
    few = np.flatnonzero(E_SWEEP.experts == 8)[:4]
    assert RIVALS["chinchilla per kind"](RUNS.at([*np.flatnonzero(E_SWEEP.experts == 1), *few])) is None


def test_bic_charges_each_parameter_the_logarithm_of_the_runs():
    predicted = RUNS.loss * np.exp(np.random.default_rng(0).laplace(0, 0.01, len(RUNS)))
    assert bic(predicted, RUNS.loss, 7) - bic(predicted, RUNS.loss, 4) == pytest.approx(3 * np.log(len(RUNS)))
    residuals = np.abs(np.log(predicted / RUNS.loss))
    likelihood = np.sum(np.log(2 * residuals.mean()) + residuals / residuals.mean())  # Laplace's, at its own scale
    assert bic(predicted, RUNS.loss, 0) == pytest.approx(2 * likelihood)


def test_a_worse_prediction_has_a_higher_bic():
    near, far = RUNS.loss * 1.001, RUNS.loss * 1.01
    assert bic(near, RUNS.loss, 5) < bic(far, RUNS.loss, 5)
    assert np.isfinite(bic(RUNS.loss, RUNS.loss, 5))  # also where nothing is left to explain


def test_only_forms_whose_knob_varies_are_compared_the_best_first():
    rows = compare(RUNS, holdout=0.2)
    assert [row.bic for row in rows] == sorted(row.bic for row in rows)
    names = {row.name for row in rows}
    assert {"chinchilla", "paper-E", "joint-moe", "joint"} <= names
    assert {"paper-g", "paper-s", "fine-grained"}.isdisjoint(names)
    assert {row.name for row in rows if row.rival} == {*RIVALS}
    assert rows[0].name in ("paper-E", "joint-moe")  # which differ by E_max, and the runs hardly say where that is
    by_name = {row.name: row for row in rows}
    assert by_name["joint"].parameters == by_name["paper-E"].parameters == by_name["joint-moe"].parameters - 1
    assert by_name["paper-E"].bic < by_name["chinchilla"].bic - 10
    for row in rows:
        assert row.as_json()["name"] == row.name
        assert row.holdout_rmse is None or row.holdout_rmse > 0


def test_without_a_holdout_nothing_is_predicted():
    assert {row.holdout_rmse for row in compare(RUNS.at(E_SWEEP.experts == 1), holdout=0)} == {None}


def test_runs_that_repeat_data_take_no_part_unless_all_do():
    dense = RUNS.at(E_SWEEP.experts == 1)
    marked = Runs(**vars(dense) | {"loss": dense.loss + (np.arange(15) < 3), "repeated": np.arange(15) < 3})
    kept = compare(marked, holdout=0)
    assert next(row.rmse for row in kept if row.name == "chinchilla") < 0.01
    everything = Runs(**vars(dense) | {"repeated": np.ones(15, bool)})
    assert {row.name for row in compare(everything, holdout=0)} >= {"chinchilla", "constant"}


def test_too_few_runs_for_the_smallest_law_are_refused():
    assert "n_active takes 1 value" in refusal(lambda: compare(RUNS.at(slice(0, 3))), DataError)


def test_forecasts_are_those_of_the_comparison_and_a_better_one_is_said():
    errors = forecasts(RUNS, 0.2)
    assert errors == {row.name: row.holdout_rmse for row in compare(RUNS, 0.2) if row.holdout_rmse is not None}
    simple = fit(RUNS, "chinchilla", holdout=0.2)  # does not know E
    best = min(errors, key=errors.get)
    said = better_forecast(simple, errors)
    assert said.startswith(f"{best} forecasts the {len(simple.holdout.ids)} held-out runs better than chinchilla")
    assert f"RMSE {errors[best]:.4f} against {simple.holdout.rmse:.4f}" in said
    law = fit(RUNS, "paper-E", holdout=0.2)
    assert better_forecast(law, {"paper-E": law.holdout.rmse, "joint": 0.95 * law.holdout.rmse}) is None
    assert "try --law joint" in better_forecast(law, {"paper-E": law.holdout.rmse, "joint": 0.5 * law.holdout.rmse})
    assert better_forecast(fit(RUNS, "chinchilla"), errors) is None  # it made no forecast
