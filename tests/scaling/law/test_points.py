"""Points and runs: arrays of one shape, in units of 1e9, picked together, and refused where no model can be."""

import numpy as np
import pytest

from mobilemoe.errors import UsageError
from mobilemoe.scaling import Points, Runs
from mobilemoe.scaling.law.runs import FIELDS, few
from refusals import refusal


def test_columns_are_broadcast_to_one_shape_and_made_float64():
    points = Points(n_active=[[1], [2]], tokens=[10, 20, 30], experts=8)
    assert points.shape == (2, 3)
    assert len(points) == 6
    for name in FIELDS:
        assert getattr(points, name).shape == (2, 3)
        assert getattr(points, name).dtype == np.float64
    assert {*points.granularity.ravel(), *points.shared.ravel()} == {1.0, 0.0}  # of a dense model, unless they are said


def test_one_point_has_no_axis_and_counts_as_one():
    assert Points(n_active=1, tokens=2).shape == ()
    assert len(Points(n_active=1, tokens=2)) == 1


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("n_active", 0, "above 0"),
        ("tokens", -1, "above 0"),
        ("tokens", np.inf, "above 0"),
        ("experts", 0.99, "of at least 1"),
        ("granularity", np.nan, "of at least 1"),
        ("shared", -0.5, "of at least 0"),
    ],
)
def test_what_no_model_can_have_is_named_with_its_rule(name, value, rule):
    columns = {"n_active": [1.0, 2.0], "tokens": [1.0, 2.0]} | {name: [1.0, value]}
    assert refusal(lambda: Points(**columns), UsageError) == f"{name} is {value:g}, but must be a number {rule}"


def runs() -> Runs:
    points = Points(n_active=[0.1, 0.2, 0.3], tokens=[1, 2, 3], experts=[1, 4, 8])
    return Runs(
        points=points,
        loss=np.array([3.0, 2.5, 2.0]),
        ids=("a", "b", "c"),
        repeated=np.array([False, True, False]),
        held_out=np.array([False, False, True]),
        notes=("read so",),
    )


@pytest.mark.parametrize("index", [[2, 0], np.array([True, False, True]), slice(None, None, -2)], ids=str)
def test_runs_are_picked_in_all_their_columns(index):
    part, whole = runs().at(index), runs()
    places = np.arange(3)[index]
    assert part.ids == tuple("abc"[place] for place in places)
    for name in ("loss", "repeated", "held_out"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[places])
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(part.points, name), getattr(whole.points, name)[places])
    assert part.notes == ("read so",)
    assert len(part) == len(places)


def test_training_compute_is_six_n_d():
    np.testing.assert_allclose(runs().flops, [6e17, 2.4e18, 5.4e18])


def test_names_and_numbers_in_a_sentence():
    assert (few("abc"), few("abcd"), few([])) == ("a, b, c", "a, b, c, ...", "")
