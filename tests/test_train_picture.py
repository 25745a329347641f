"""The loss curve is a picture, and a run that could not draw it does not begin."""

import sys

import pytest

from mobilemoe.errors import MissingExtraError
from mobilemoe.train.loop import train
from mobilemoe.train.metrics import draw_loss


def test_the_loss_curve_is_a_png(tmp_path):
    rows = [{"step": n, "tokens": n * 1000, "loss": 9 - n / 10, "load_variation": 1 / n} for n in range(1, 60)]
    draw_loss(rows, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert (tmp_path / "loss.png").stat().st_size > 10_000


def test_without_matplotlib_a_run_does_not_begin(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"mobilemoe\[train\]"):
        train(None, tmp_path / "run")
    assert not (tmp_path / "run").exists()
