"""The domain is the hull of the runs' N and D: what lies in both ranges but beside the runs is extrapolation."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from mobilemoe.errors import DataError, UsageError
from mobilemoe.scaling import Law, Points, fit, published
from mobilemoe.scaling.law.domain import hull_of, share_of_box, within
from refusals import refusal
from scaling_runs import joint_law, runs_of

CHINCHILLA = Law(form="chinchilla", parameters=published("chinchilla").parameters, rmse=0, domain={}, source="")


def ribbon(runs: int = 20, width: float = 1.3) -> Points:
    """About 20 tokens for each parameter."""
    n = np.geomspace(0.05, 1, runs)
    return Points(n_active=n, tokens=20 * n * np.where(np.arange(runs) % 2, width, 1 / width))


def test_the_hull_of_a_grid_is_its_box_and_that_of_a_triangle_half_of_it():
    n, d = (axis.ravel() for axis in np.meshgrid([0.1, 0.2, 0.4], [1, 10, 100]))
    grid = Points(n_active=n, tokens=d)
    assert share_of_box(hull_of(grid)) == pytest.approx(1)
    assert len(hull_of(grid)) == 4
    lower = grid.at(np.log(d / 1) / np.log(100) <= np.log(n / 0.1) / np.log(4) + 1e-9)
    assert share_of_box(hull_of(lower)) == pytest.approx(0.5)


def test_the_runs_lie_in_their_own_hull_and_the_corners_of_the_box_do_not():
    points = ribbon()
    hull = hull_of(points)
    assert within(hull, points).all()
    assert not within(hull, Points(n_active=[0.05, 1.0], tokens=[20.0, 1.0])).any()
    square = Points(n_active=[[0.2, 0.2], [0.2, 0.8]], tokens=[[4, 1.5], [20, 16]])
    assert within(hull, square).tolist() == [[True, False], [False, True]]


def test_runs_on_one_line_have_a_domain_of_two_corners():
    n = np.geomspace(0.05, 1, 7)
    hull = hull_of(Points(n_active=n, tokens=20 * n))
    assert len(hull) == 2
    assert share_of_box(hull) == pytest.approx(0, abs=1e-9)
    asked = Points(n_active=[0.05, 0.1, 1, 0.1, 2, 0.01], tokens=[1, 2, 20, 3, 40, 0.2])
    assert within(hull, asked).tolist() == [True, True, True, False, False, False]


def test_fit_warns_of_a_ribbon_and_its_law_of_what_lies_beside_it():
    found = fit(runs_of(CHINCHILLA, ribbon()), "chinchilla")
    (note,) = (note for note in found.notes if "ribbon" in note)
    assert f"{share_of_box(found.law.hull):.0%}" in note
    beside = Points(n_active=[0.05, 0.5], tokens=[20, 10])
    (sentence,) = found.law.outside(beside)
    assert "n_active 0.05B with tokens 20B is in the ranges, but outside the hull" in sentence
    assert found.law.outside(beside.at(slice(1, 2))) == []
    beyond = found.law.outside(Points(n_active=5, tokens=10))
    assert len(beyond) == 1  # out of the range is said, and not once more of the hull
    assert not any("ribbon" in note for note in fit(runs_of(joint_law())).notes)


def test_the_hull_is_saved_and_needs_no_scipy_to_be_used(tmp_path, monkeypatch):
    law = fit(runs_of(CHINCHILLA, ribbon()), "chinchilla").law
    law.save(tmp_path / "law.json")
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.spatial", None)
    again = Law.load(tmp_path / "law.json")
    assert again.hull == law.hull
    assert again.outside(Points(n_active=0.05, tokens=20))


def test_a_file_without_version_or_hull_is_read_and_a_later_version_is_not():
    values = published("paper-E").as_json()
    assert values.pop("version") == 2
    del values["hull"]
    assert Law.from_json(values) == published("paper-E")
    assert "reads up to 2" in refusal(lambda: Law.from_json(values | {"version": 3}), DataError)
    for wrong in ([[1, 2]], [[1, 2], [3, -4]], [[1, 2], [3, float("inf")]]):
        assert "hull" in refusal(lambda wrong=wrong: Law.from_json(values | {"hull": wrong}), UsageError)
    for wrong in (7, [[1, 2, 3], [1, 2, 3]], [["a", 2], [1, 2]]):
        assert "no number" in refusal(lambda wrong=wrong: Law.from_json(values | {"hull": wrong}), DataError)


def test_a_law_without_a_hull_covers_all_of_its_ranges():
    points = Points(n_active=[0.3, 0.9, 1.0], tokens=[500, 100, 300])
    assert published("paper-E").covers(points).tolist() == [True, True, False]
    narrow = replace(published("paper-E"), hull=((0.3, 100.0), (0.9, 500.0)))
    assert narrow.covers(points).tolist() == [False, False, False]
