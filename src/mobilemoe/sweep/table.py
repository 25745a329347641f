"""The two tables of a sweep, runs.csv and failures.csv, with a row for each run; several processes write them.

Beside them, documents/ID.csv has a row for each held-out document that the run was scored on.
"""

from __future__ import annotations

import csv
import fcntl
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mobilemoe.errors import TrainError
from mobilemoe.files import write_atomic
from mobilemoe.table import read_table

RUNS, FAILURES, DOCUMENTS = "runs.csv", "failures.csv", "documents"


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table, as text by column; empty where there is no file yet."""
    if not path.exists():
        return []
    table = read_table(path, TrainError)
    if missing := [name for name in ("id", "key") if name not in table.header]:
        raise TrainError(f"{path} is no table of a sweep: it has no column {missing[0]!r}")
    for row in table.rows:
        if row.lacks:
            cells, width = len(table.header) - row.lacks, len(table.header)
            raise TrainError(
                f"{path}, line {row.line}, has {cells} cells where the header has {width}: mend or remove it"
            )
    return table.plain()


def add_row(path: Path, row: dict[str, Any]) -> None:
    """Adds a row, or replaces the one with the same id.

    The file is replaced in one step, and one process writes at a time. Raises TrainError if the file has other columns.
    """
    with locked(path.with_name(f".{path.name}.lock")):
        rows = read_rows(path)
        if rows and list(rows[0]) != list(row):
            different = sorted({*rows[0]} ^ {*row})
            raise TrainError(f"{path} has other columns than this sweep writes ({different}): give it another --out")
        _write(path, list(row), [*(old for old in rows if old["id"] != row["id"]), row])


def remove_rows(path: Path, ids: set[str]) -> None:
    """Removes the rows of these runs, if there are any."""
    with locked(path.with_name(f".{path.name}.lock")):
        rows = read_rows(path)
        if kept := [row for row in rows if row["id"] not in ids]:
            _write(path, list(rows[0]), kept)
        else:
            path.unlink(missing_ok=True)


def write_documents(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the losses of a run by document."""
    path.parent.mkdir(exist_ok=True)
    _write(path, list(rows[0]), rows)


def _write(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file `path`, after waiting for any process that holds it. A process that dies releases it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Takes the lock file `path` if no process holds it, without waiting; says whether it was taken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
