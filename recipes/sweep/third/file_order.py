"""`mobilemoe data prepare` without its shuffle, to measure what the shuffle gives: pieces are written in file order.

python recipes/sweep/third/file_order.py RECIPE OUT --set data.path=TEXT
"""

import sys
from itertools import count
from pathlib import Path

from numpy.typing import DTypeLike

from mobilemoe.cli.main import app
from mobilemoe.data import prepare, shuffle


class _Counter:
    """Keys that grow, where the shuffle draws random ones."""

    def __init__(self) -> None:
        self._numbers = count()

    def random_raw(self) -> int:
        return next(self._numbers)


class FileOrder(shuffle.Shuffler):
    def __init__(self, folder: Path, seed: int, ids_type: DTypeLike, size: int) -> None:
        super().__init__(folder, seed, ids_type, 0)  # one bucket, in memory
        self._dice = _Counter()  # type: ignore[assignment]


prepare.Shuffler = FileOrder  # type: ignore[attr-defined]
app(["data", "prepare", *sys.argv[1:]])
