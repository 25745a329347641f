"""The solver: coordinates that take any value, a descent that never climbs, and weights that count runs."""

import numpy as np
import pytest

from mobilemoe.scaling import published
from mobilemoe.scaling.law.forms import FORMS, INDEX
from mobilemoe.scaling.law.search import polish, search
from mobilemoe.scaling.law.solver import HUBER, LONGEST_STEP, Problem, descend, misfit
from scaling_runs import joint_law, paper_sweep, runs_of


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem(FORMS["joint"], runs_of(joint_law(), noise=0.003), FORMS["joint"].parameters)


@pytest.fixture
def starts(problem) -> np.ndarray:
    """Coordinates near the truth, and further and further from it."""
    x = problem.coordinates(joint_law().theta)
    return np.clip(x + np.random.default_rng(0).normal(0, [[0.0], [0.05], [0.2]], (3, len(x))), *problem.bounds)


ONES = np.ones((1, 210))


def test_any_coordinates_within_the_walls_are_a_law_with_a_loss(problem):
    low, high = problem.bounds
    x = np.random.default_rng(1).uniform(low, high, (200, len(low)))
    theta = problem.theta(x)
    place = {name: theta[:, problem.form.parameters.index(name)] for name in ("A", "B", "c", "phi", "kappa")}
    assert all(np.all(place[name] > 0) for name in ("A", "B", "c", "phi"))
    assert np.all(place["kappa"] < 1)  # finer experts cannot take more than the whole term
    assert np.all(np.isfinite(problem.residuals(x)))
    assert np.all(np.isfinite(problem.residuals(np.array([low, high]))))


def test_coordinates_and_constants_are_two_ways_to_say_the_same(problem):
    theta = joint_law().theta
    np.testing.assert_allclose(problem.theta(problem.coordinates(theta)), theta, rtol=1e-10)
    both = problem.coordinates(np.array([theta, theta]))
    np.testing.assert_array_equal(both[0], both[1])


def test_constants_beyond_the_walls_are_taken_to_the_wall(problem):
    theta = joint_law().theta
    theta[problem.form.parameters.index("alpha")] = 50
    _, high = problem.bounds
    at = problem.free.index("alpha")
    assert problem.coordinates(theta)[at] == high[at]


def test_parameters_that_are_not_free_have_no_effect():
    runs = runs_of(joint_law())
    part = Problem(FORMS["joint"], runs, tuple(name for name in FORMS["joint"].parameters if name != "sigma"))
    whole = part.whole(part.coordinates(joint_law().theta)[None])
    assert whole[0, INDEX["sigma"]] == 0
    theta = part.theta(part.coordinates(joint_law().theta))
    assert theta[FORMS["joint"].parameters.index("sigma")] == 0


def test_runs_are_seen_in_units_of_their_own_middle(problem):
    assert np.log(problem.points.n_active).mean() == pytest.approx(0, abs=1e-12)
    assert np.log(problem.points.tokens).mean() == pytest.approx(0, abs=1e-12)
    assert problem.log_loss.mean() == pytest.approx(0, abs=1e-12)


def test_a_descent_never_ends_above_its_start_and_says_whether_it_settled(problem, starts):
    before = misfit(problem.residuals(starts), ONES)
    short, long = descend(problem, starts, ONES, steps=2), descend(problem, starts, ONES, steps=400)
    assert np.all(short.misfit <= before)
    assert np.all(long.misfit <= short.misfit)
    assert not short.settled.any()
    assert long.settled.all()
    np.testing.assert_allclose(misfit(problem.residuals(long.x), ONES), long.misfit)
    assert long.misfit.max() < 1.001 * long.misfit.min()  # all in one valley


def test_no_step_climbs_from_wherever_it_starts(problem):
    low, high = problem.bounds
    anywhere = np.random.default_rng(2).uniform(low, high, (20, len(low)))
    before = misfit(problem.residuals(anywhere), ONES)
    for steps in (1, 2, 3, 5, 9, 17):
        after = descend(problem, anywhere, ONES, steps=steps).misfit
        assert np.all(after <= before)
        before = after


def test_no_step_is_longer_than_the_longest_in_any_coordinate(problem, starts):
    far = np.clip(starts + 3, *problem.bounds)
    once = descend(problem, far, ONES, steps=1)
    assert np.abs(once.x - far).max() <= LONGEST_STEP + 1e-12


def test_a_descent_leaves_its_starts_alone_and_stays_within_the_walls(problem, starts):
    low, high = problem.bounds
    kept = starts.copy()
    ended = descend(problem, starts, ONES, steps=50)
    np.testing.assert_array_equal(starts, kept)
    assert np.all((ended.x >= low) & (ended.x <= high))


def test_starts_go_down_as_each_does_alone(problem, starts):
    together = descend(problem, starts, ONES, steps=30)
    for place in range(len(starts)):
        alone = descend(problem, starts[place : place + 1], ONES, steps=30)
        np.testing.assert_allclose(alone.x[0], together.x[place], rtol=1e-7, atol=1e-9)


def test_a_run_of_weight_0_is_as_if_it_were_not_there(starts):
    wild = runs_of(joint_law(), noise=0.003)
    wild.loss[:20] *= 1.5
    weights = np.ones((1, 210))
    weights[:, :20] = 0
    problem = Problem(FORMS["joint"], wild, FORMS["joint"].parameters)
    ended = descend(problem, problem.coordinates(joint_law().theta)[None], weights)
    parameters = dict(zip(FORMS["joint"].parameters, problem.theta(ended.x[0]), strict=True))
    assert parameters["c"] == pytest.approx(joint_law().parameters["c"], abs=0.05)
    assert ended.misfit[0] < 20 * HUBER  # 20 wild runs alone would cost 20 * ln 1.5 * HUBER


def test_the_polish_only_ever_lowers_the_misfit(problem, starts):
    for x in starts:
        before = misfit(problem.residuals(x[None]), ONES)[0]
        ended, after, _ = polish(problem, x, False)
        assert after <= before
        assert misfit(problem.residuals(ended[None]), ONES)[0] == pytest.approx(after, rel=1e-6)


def test_a_search_without_a_start_near_the_truth_finds_it():
    law = published("paper-E")
    points = paper_sweep().at(paper_sweep().granularity == 1)
    problem = Problem(FORMS["paper-E"], runs_of(law, points), FORMS["paper-E"].parameters)
    x, found, settled = search(problem, seed=3)
    assert settled
    assert found < 1e-8
    np.testing.assert_allclose(problem.theta(x), law.theta, rtol=0.02)
    again, same, _ = search(problem, seed=3)
    np.testing.assert_array_equal(again, x)
    assert same == found
