"""What a picture shows, read from the figure that was saved instead of from its pixels (a pytest plugin)."""

import pytest


@pytest.fixture
def figures(monkeypatch) -> list:
    """Every figure that is saved from now on, in order."""
    from matplotlib.figure import Figure

    saved = []
    save = Figure.savefig

    def kept(self, *arguments, **options):
        saved.append(self)
        return save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", kept)
    return saved


def curve(axes, label: str) -> list[tuple[float, float]]:
    """The points of the one line that the legend calls so."""
    (line,) = (line for line in axes.get_lines() if line.get_label() == label)
    return [(float(x), float(y)) for x, y in line.get_xydata()]


def labels(axes) -> list[str]:
    """The labels of the legend, in order."""
    return axes.get_legend_handles_labels()[1]


def colours(png: bytes) -> int:
    """How many different pixels a PNG has; raises where it is none. An empty canvas has one."""
    import io

    import numpy as np
    from matplotlib.image import imread

    pixels = imread(io.BytesIO(png), format="png")
    return len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0))
