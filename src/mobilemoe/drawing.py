"""Access to matplotlib, which only the pictures need."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from mobilemoe.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure_kind(what: str, extra: str) -> type[Figure]:
    """matplotlib's Figure, which needs no screen. Raises MissingExtraError, which says that `what` needs `extra`;
    call it before long work, so that a missing package is not found at its end."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise MissingExtraError(what, extra) from None
    return Figure


def png(figure: Figure, dpi: int) -> bytes:
    """The figure as a PNG file's bytes."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi)
    return out.getvalue()
