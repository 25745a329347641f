"""Reads a source that may fail: it is opened again at the row where it failed, a few times, before the run stops."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from mobilemoe.errors import DataError, MobileMoEError

WAITS = (1.0, 5.0, 25.0)  # seconds before each new attempt; a network or a mount is often back after half a minute

_LASTING = (errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG)

_Row = TypeVar("_Row")


def read_patiently(
    read: Callable[[], Iterator[tuple[int, _Row]]], name: str, passing: type[Exception] = OSError
) -> Iterator[tuple[int, _Row]]:
    """The pairs (row number, row) of `read()`, each once, with new attempts after errors.

    `read` starts at the first row each time. After an error that may be temporary (`passing`, but none of our own) it
    is called again, and rows that were returned before are skipped. Each new row resets the number of attempts. The
    first failure is reported on standard error. A missing file is waited for too, since its mount may be gone: whether
    a file exists is checked where a source is opened. Raises DataError naming the shard `name` and the row when all
    attempts have failed.
    """
    given = last = failures = 0
    while True:
        try:
            for seen, (number, row) in enumerate(read(), 1):
                if seen > given:
                    given, last, failures = seen, number, 0
                    yield number, row
            return
        except MobileMoEError:
            raise
        except passing as fault:
            if getattr(fault, "errno", None) in _LASTING:
                raise DataError(f"{name} cannot be read: {getattr(fault, 'strerror', fault)}") from fault
            if failures == len(WAITS):
                tries = failures + 1
                raise DataError(
                    f"{name} cannot be read after row {last}, {tries} attempts failed: {_reason(fault)}"
                ) from fault
            if failures == 0:
                waits = ", ".join(f"{seconds:g}" for seconds in WAITS)
                print(
                    f"mobilemoe: {name} cannot be read after row {last} ({_reason(fault)}): waiting for it, with new "
                    f"attempts after {waits} seconds",
                    file=sys.stderr,
                    flush=True,
                )
            time.sleep(WAITS[failures])
            failures += 1


def _reason(fault: Exception) -> str:
    """The fault in one line, without the file's name, which is said already."""
    said = getattr(fault, "strerror", None) or str(fault)
    return (said.splitlines() or [type(fault).__name__])[0]
