"""A mapped file that another program changes in place: the system ends a process that reads what was cut off (SIGBUS).

So its size and time of change are checked before each pass, which takes a microsecond. The remaining risk is a file
that is cut during a pass; nothing in this package changes an engine file in place.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path

from mobilemoe.errors import CheckpointError


class Watch:
    """What `path` was when this was made; renaming and removing it change nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        self._was = self._now()

    def check(self) -> None:
        """CheckpointError if the file was written to or cut since."""
        if self._now() != self._was:
            raise CheckpointError(
                f"{self._path} was changed while the model was in use: start again, and replace such a file by "
                "renaming another, not by writing into it"
            )

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self._file)
        return status.st_size, status.st_mtime_ns
