"""Progress of long work, on standard error: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Self

from rich import progress
from rich.console import Console


class Progress:
    """A context manager for several pieces of work, each with its own bar."""

    def __init__(self, *, seconds: float = 30.0) -> None:
        """`seconds`: time between two lines."""
        self._seconds = seconds
        self._on_terminal = sys.stderr.isatty()
        self._bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(stderr=True),
            transient=True,
            disable=not self._on_terminal,
        )
        self._task: progress.TaskID | None = None
        self._what = ""
        self._began = self._told = time.monotonic()
        self._first = 0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def counter(self, what: str) -> Callable[[int], None]:
        """A function to report how many are done, if their total is unknown."""
        return lambda done: self.tell(done, None, what)

    def tell(self, done: int, total: int | None, what: str) -> None:
        """Reports that `done` of `total` are done; another name begins another piece of work."""
        now = time.monotonic()
        if self._task is None or what != self._what:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task, self._what = self._bars.add_task(what, total=total, completed=done), what
            self._began = now
            self._first = done
        self._bars.update(self._task, completed=done, total=total)
        if not self._on_terminal and now - self._told >= self._seconds:
            self._told = now
            print(f"{what}: {self._line(done, total, now)}", file=sys.stderr, flush=True)

    def _line(self, done: int, total: int | None, now: float) -> str:
        if total is None:
            return f"{done:,}"
        new = done - self._first
        left = f", {(total - done) / new * (now - self._began):,.0f} s left" if new else ""
        return f"{done:,} of {total:,}{left}"
