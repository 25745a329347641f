"""Progress of long work, on standard error: a bar on a terminal, else a line now and then.

A verb opens a `Progress`. What it calls reports to it with `each` or `tell`, which do nothing where none is open, so
that the functions between the two need no parameter for it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from rich.progress import TaskID

SECONDS = 10.0  # between two lines where there is no terminal
Item = TypeVar("Item")
_open: Progress | None = None


class Progress:
    """A context manager for several pieces of work, each with its own bar."""

    def __init__(self, *, seconds: float = SECONDS) -> None:
        """`seconds`: time between two lines."""
        from rich import progress
        from rich.console import Console

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
        self._task: TaskID | None = None
        self._what = ""
        self._began = self._told = time.monotonic()
        self._first = 0

    def __enter__(self) -> Self:
        global _open
        self._outer, _open = _open, self
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        global _open
        _open = self._outer
        self._bars.stop()

    def counter(self, what: str) -> Callable[[int], None]:
        """A function to report how many are done, if their total is unknown."""
        return lambda done: self.tell(done, None, what)

    def tell(self, done: int, total: int | None, what: str) -> None:
        """Reports that `done` of `total` are done; another name begins another piece of work."""
        from rich.markup import escape

        now = time.monotonic()
        if self._task is None or what != self._what:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task, self._what = self._bars.add_task(escape(what), total=total, completed=done), what
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


def tell(done: int, total: int | None, what: str) -> None:
    """Reports to the verb that runs, if it shows progress: `done` of `total` are done."""
    if _open is not None:
        _open.tell(done, total, what)


def each(items: Collection[Item], what: str) -> Iterator[Item]:
    """Gives the items, and reports before each how many are done."""
    for done, item in enumerate(items):
        tell(done, len(items), what)
        yield item


def shown() -> AbstractContextManager[object]:
    """Opens a `Progress` unless the verb that runs has opened one."""
    return nullcontext() if _open is not None else Progress()
