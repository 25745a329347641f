"""Loss curve and routing are drawn, and a run that could not draw them does not begin."""

import sys

import numpy as np
import pytest

from drawn import colours, curve, labels
from mobilemoe.errors import MissingExtraError
from mobilemoe.train.loop import train
from mobilemoe.train.metrics import draw_loss, draw_routing


def test_the_loss_of_each_step_its_mean_the_held_out_loss_and_the_load_are_drawn_over_the_tokens(tmp_path, figures):
    rows = [{"step": n, "tokens": n * 1000, "loss": 9 - n / 20, "load_variation": 1 / n} for n in range(1, 121)]
    for row in rows[59::60]:
        row["validation"] = {"loss": row["loss"] + 1, "bits_per_byte": row["loss"] / 2}
    draw_loss(rows, tmp_path / "loss.png")
    (figure,) = figures
    assert colours((tmp_path / "loss.png").read_bytes()) > 50
    loss_axes, load_axes = figure.axes
    millions = [n / 1000 for n in range(1, 121)]
    assert curve(loss_axes, "training, each step") == list(zip(millions, [row["loss"] for row in rows], strict=True))
    smooth = curve(loss_axes, "training, mean of 2 steps")
    assert smooth[0] == (0.001, rows[0]["loss"])
    assert [y for _, y in smooth[1:]] == pytest.approx([9 - n / 20 + 1 / 40 for n in range(2, 121)])
    assert curve(loss_axes, "held-out text (last: 1.500 bits per byte)") == [(0.06, 7.0), (0.12, 4.0)]
    assert len(labels(loss_axes)) == 3
    (load,) = load_axes.get_lines()
    assert load.get_xydata().tolist() == [[n / 1000, 1 / n] for n in range(1, 121)]
    assert loss_axes.get_ylabel() == "loss (nats per token)"
    assert (load_axes.get_xlabel(), load_axes.get_ylabel()) == ("tokens (millions)", "expert load\nstd / mean")


def test_without_a_validation_the_picture_has_no_line_for_it(tmp_path, figures):
    draw_loss([{"step": 1, "tokens": 1000, "loss": 9, "load_variation": 1}], tmp_path / "loss.png")
    assert labels(figures[0].axes[0]) == ["training, each step", "training, mean of 1 step"]


def maps(figure) -> dict[str, np.ndarray]:
    """What the maps of a figure show, by their titles; what is grey is nan."""
    return {axes.get_title(): axes.get_images()[0].get_array().filled(np.nan) for axes in figure.axes if axes.images}


def test_the_routing_is_drawn_as_ratios_one_map_for_the_load_and_one_for_each_domain(tmp_path, figures):
    books, code = [[4, 0, 0], [1, 1, 2]], [[0, 4, 0], [1, 1, 2]]
    report = {"load": [[4, 4, 0], [2, 2, 4]], "load_by_domain": {"books": books, "code": code, "none": [[0] * 3] * 2}}
    draw_routing(report, tmp_path / "router.png")
    assert colours((tmp_path / "router.png").read_bytes()) > 50
    shown = maps(figures[0])
    assert list(shown) == ["all: load / mean", "books", "code", "none"]
    all_of_it, of_books, of_code, of_none = shown.values()
    np.testing.assert_allclose(all_of_it, [[1.5, 1.5, 0], [0.75, 0.75, 1.5]])
    np.testing.assert_allclose(of_books, [[2, 0, np.nan], [1, 1, 1]])
    np.testing.assert_allclose(of_code, [[0, 2, np.nan], [1, 1, 1]])
    assert np.isnan(of_none).all()
    for axes in figures[0].axes[:4]:
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("expert", "layer")
        assert axes.get_images()[0].get_clim() == (0, 2)  # white, the middle, is no preference


def test_one_domain_needs_no_map_of_its_own(tmp_path, figures):
    load = [[4, 4, 0], [2, 2, 4]]
    draw_routing({"load": load, "load_by_domain": {"text": load}}, tmp_path / "router.png")
    assert list(maps(figures[0])) == ["all: load / mean"]


def test_without_matplotlib_a_run_does_not_begin(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"mobilemoe\[train\]"):
        train(None, tmp_path / "run")
    assert not (tmp_path / "run").exists()
