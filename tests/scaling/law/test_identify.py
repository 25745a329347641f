"""What runs can say: terms that they do not determine are held with a sentence, and runs that do not fit are named."""

from dataclasses import replace

import numpy as np
import pytest

from mobilemoe.errors import DataError
from mobilemoe.scaling import Points
from mobilemoe.scaling.law.forms import FORMS
from mobilemoe.scaling.law.identify import FAR, doubts, far_from, problem_of, replicates, unsettled
from mobilemoe.scaling.law.solver import Problem
from refusals import refusal
from scaling_runs import joint_law, paper_sweep, runs_of

RUNS = runs_of(joint_law(), noise=0.002)


def part(mask) -> tuple[Problem, list[str]]:
    return problem_of(FORMS["joint"], RUNS.at(mask))


def test_a_full_design_frees_every_parameter_and_says_nothing():
    problem, notes = problem_of(FORMS["joint"], RUNS)
    assert problem.free == FORMS["joint"].parameters
    assert notes == []


@pytest.mark.parametrize("name", ["n_active", "tokens"])
@pytest.mark.parametrize("levels", [1, 2])
def test_fewer_than_three_sizes_or_lengths_tell_no_power_from_a_constant(name, levels):
    values = getattr(RUNS.points, name)
    few = RUNS.at(np.isin(values, np.unique(values)[:levels]))
    sentence = refusal(lambda: problem_of(FORMS["chinchilla"], few), DataError)
    assert f"{name} takes {levels} value" in sentence
    assert "at least 3" in sentence


def test_without_granularity_kappa_and_phi_are_held_and_with_two_values_phi_alone():
    problem, notes = part(RUNS.points.granularity == 1)  # where no run has a shared expert either
    assert {*FORMS["joint"].parameters} - {*problem.free} == {"kappa", "phi", "sigma"}
    assert [note.split(" ")[0] for note in notes] == ["granularity", "shared"]
    problem, (note,) = part(RUNS.points.granularity <= 2)
    assert {*FORMS["joint"].parameters} - {*problem.free} == {"phi"}
    assert "cannot tell kappa from phi" in note


def test_each_knob_that_stands_still_has_a_sentence_that_names_what_is_held():
    problem, notes = part((RUNS.points.granularity == 1) & (RUNS.points.shared == 0) & (RUNS.points.experts == 8))
    assert problem.free == ("A", "alpha", "B", "beta", "c")
    assert [note.split(" ")[0] for note in notes] == ["experts", "granularity", "shared"]
    assert "(delta, gamma, omega, zeta held)" in notes[0]
    assert "(kappa, phi held)" in notes[1]
    assert "(sigma held)" in notes[2]


def test_three_numbers_of_experts_are_too_few_for_where_they_saturate():
    points = paper_sweep()
    runs = runs_of(joint_law(), points.at((points.granularity == 1) & np.isin(points.experts, (1, 4, 16))))
    problem, notes = problem_of(FORMS["joint-moe"], runs)
    assert "E_max" not in problem.free
    assert any("held at 32" in note for note in notes)
    more = runs_of(joint_law(), points.at((points.granularity == 1) & np.isin(points.experts, (1, 4, 16, 32))))
    assert "E_max" in problem_of(FORMS["joint-moe"], more)[0].free


def test_as_many_runs_as_parameters_and_two_are_needed():
    n, d = np.meshgrid([0.3, 0.5, 0.9], [100, 200, 300])
    runs = runs_of(joint_law(), Points(n_active=n.ravel(), tokens=d.ravel()))
    assert problem_of(FORMS["chinchilla"], runs.at([0, 1, 3, 4, 5, 7, 8]))[0].free == FORMS["chinchilla"].parameters
    sentence = refusal(lambda: problem_of(FORMS["chinchilla"], runs.at([0, 1, 4, 5, 7, 8])), DataError)
    assert "there are 6 runs, but the law 'chinchilla' has 5 parameters to fit and needs at least 7" in sentence


def test_directions_that_the_runs_leave_open_are_doubted_by_name():
    held = Problem(FORMS["joint"], RUNS.at(RUNS.points.shared == 0), FORMS["joint"].parameters)  # sigma does nothing
    (sentence,) = doubts(held, held.coordinates(joint_law().theta), 1e-4)
    assert "sigma" in sentence
    assert "alone mean little" in sentence
    whole = Problem(FORMS["joint"], RUNS, FORMS["joint"].parameters)
    assert doubts(whole, whole.coordinates(joint_law().theta), 1e-4) == []


def test_a_parameter_at_the_end_of_its_search_is_doubted():
    problem = Problem(FORMS["joint"], RUNS, FORMS["joint"].parameters)
    x = problem.coordinates(joint_law().theta)
    x[problem.free.index("gamma")] = problem.bounds[1][problem.free.index("gamma")]
    assert "gamma" in doubts(problem, x, 1e-4)[0]


def test_far_runs_come_the_worst_first_and_a_close_fit_has_none():
    predicted = RUNS.loss.copy()
    assert len(far_from(RUNS, predicted)) == 0
    predicted += 0.002 * np.where(np.arange(210) % 2, 1, -1)
    assert len(far_from(RUNS, predicted)) == 0
    predicted[[7, 50, 99]] += [0.1, -0.5, 0.3]
    assert far_from(RUNS, predicted).tolist() == [50, 99, 7]
    predicted[7] = RUNS.loss[7] + 0.9 * FAR * 0.002
    assert far_from(RUNS, predicted).tolist() == [50, 99]


def test_replicates_are_counted_and_their_scatter_is_the_noise():
    points = paper_sweep()
    twice = runs_of(joint_law(), points.at(np.tile(np.arange(210), 3)), noise=0.01)
    said = replicates(twice)
    assert said.startswith("630 of 630 runs share N, D, E, g and s with another (up to 3 at one point)")
    scatter = float(said.partition("own mean by ")[2].partition(" nats")[0])
    assert scatter == pytest.approx(0.01, rel=0.15)
    assert replicates(RUNS) is None
    assert replicates(RUNS.at([*range(210), 0, 1, 2])) is None  # a few need no word


def test_shortest_runs_that_scatter_far_more_than_longer_ones_are_named():
    points = paper_sweep()
    twice = points.at(np.tile(np.arange(210), 3))
    even = runs_of(joint_law(), twice, noise=0.01)
    assert unsettled(even) is None
    assert unsettled(RUNS) is None  # without replicates nothing is known
    shortest = twice.tokens == twice.tokens.min()
    noisier = runs_of(joint_law(), twice, noise=0.04).loss
    said = unsettled(replace(even, loss=np.where(shortest, noisier, even.loss)))
    assert said.startswith(f"runs of the fewest tokens ({twice.tokens.min():g}e9) scatter around their own mean by 0.0")
    assert unsettled(replace(even, loss=np.where(shortest, even.loss, noisier))) is None
