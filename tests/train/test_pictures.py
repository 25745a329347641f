"""Loss curve and routing are pictures, and a run that could not draw them does not begin."""

import sys

import numpy as np
import pytest
from matplotlib.axes import Axes

from mobilemoe.errors import MissingExtraError
from mobilemoe.train.loop import train
from mobilemoe.train.metrics import draw_loss, draw_routing


def test_the_loss_curve_is_a_png(tmp_path):
    rows = [{"step": n, "tokens": n * 1000, "loss": 9 - n / 10, "load_variation": 1 / n} for n in range(1, 60)]
    draw_loss(rows, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert (tmp_path / "loss.png").stat().st_size > 10_000


def test_the_routing_is_drawn_as_ratios_one_map_for_the_load_and_one_for_each_domain(tmp_path, monkeypatch):
    shown = {}
    draw = Axes.imshow

    def imshow(self, ratio_LE, **options):
        shown[len(shown)] = np.array(ratio_LE)
        return draw(self, ratio_LE, **options)

    monkeypatch.setattr(Axes, "imshow", imshow)
    books, code = [[4, 0, 0], [1, 1, 2]], [[0, 4, 0], [1, 1, 2]]
    report = {"load": [[4, 4, 0], [2, 2, 4]], "load_by_domain": {"books": books, "code": code, "none": [[0] * 3] * 2}}
    draw_routing(report, tmp_path / "router.png")
    assert (tmp_path / "router.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert len(shown) == 4
    np.testing.assert_allclose(shown[0], [[1.5, 1.5, 0], [0.75, 0.75, 1.5]])
    np.testing.assert_allclose(shown[1], [[2, 0, np.nan], [1, 1, 1]])
    np.testing.assert_allclose(shown[2], [[0, 2, np.nan], [1, 1, 1]])
    assert np.isnan(shown[3]).all()


def test_one_domain_needs_no_map_of_its_own(tmp_path, monkeypatch):
    shown = []
    draw = Axes.imshow
    monkeypatch.setattr(Axes, "imshow", lambda *given, **options: shown.append(0) or draw(*given, **options))
    load = [[4, 4, 0], [2, 2, 4]]
    draw_routing({"load": load, "load_by_domain": {"text": load}}, tmp_path / "router.png")
    assert len(shown) == 1


def test_without_matplotlib_a_run_does_not_begin(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"mobilemoe\[train\]"):
        train(None, tmp_path / "run")
    assert not (tmp_path / "run").exists()
