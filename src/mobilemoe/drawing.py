"""matplotlib, which the pictures need and nothing else."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from mobilemoe.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure_kind(what: str, extra: str) -> type[Figure]:
    """matplotlib's Figure, which needs no screen. MissingExtraError says that `what` needs `extra`: to be asked before
    long work, so that a missing package is not found out at its end."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError(what, extra) from None
    return Figure


def png(figure: Figure, dpi: int) -> bytes:
    """The figure as a PNG file's bytes."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi)
    return out.getvalue()
