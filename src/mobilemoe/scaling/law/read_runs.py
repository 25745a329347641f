"""Reads a table of finished trainings: finds the columns and their units, and decides which rows are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilemoe.counted import counted
from mobilemoe.errors import DataError, UsageError
from mobilemoe.scaling.law.runs import BILLION, FIELDS, LEAST, Array, Points, Runs, few
from mobilemoe.table import Table, read_table

LEAST_COUNT = 1e5  # a column with values from here on holds plain counts, otherwise billions
COLUMNS = (
    *("loss", *FIELDS, "n_active_no_embedding", "n_total", "flops", "id"),
    *("repeated", "epochs", "epoch_tokens", "rate", "held_out", "block"),
)
NUMBERS = tuple(name for name in COLUMNS if name not in ("id", "block"))
_FLAGS = {"true": 1.0, "yes": 1.0, "y": 1.0, "t": 1.0, "false": 0.0, "no": 0.0, "n": 0.0, "f": 0.0}


def read_runs(path: Path | str, columns: Mapping[str, str] | None = None, only: Sequence[str] = ()) -> Runs:
    """Reads the runs in a CSV file with a header.

    Needed are loss and two of n_active, tokens and flops (the third follows from C = 6 N D). n_active and tokens are
    plain counts where the column has values from 1e5 on, else billions; smaller numbers of tokens are plain counts if
    the compute says so. Without an experts column E is n_total / n_active, if there is an n_total. Rows without a
    usable number are left out, and `notes` says so.

    Needed: loss and two of n_active, tokens, flops (the third is D = C / (6 N)). n_active and tokens are plain counts
    if the column has values from 1e5 on, else billions; a smaller number of tokens is a count if the compute shows it.
    Without an experts column E is n_total / n_active if there is an n_total. Rows without a usable number are left out
    and listed in `notes`. DataError and UsageError say what to change.
    """
    with np.errstate(all="ignore"):  # some cells hold no usable number
        return _Reader(read_table(path), dict(columns or {}), tuple(only)).runs()


class _Reader:
    """Turns a table into Runs; `notes` grows with every decision."""

    def __init__(self, table: Table, columns: dict[str, str], only: tuple[str, ...]) -> None:
        self.table, self.columns, self.only = table, columns, only
        self.notes = list(table.notes)
        for ours, theirs in columns.items():
            if ours not in COLUMNS:
                raise UsageError(f"there is no column {ours!r} to map: choose one of {', '.join(COLUMNS)}")
            if theirs not in table.header:
                raise UsageError(f"{table.path} has no column {theirs!r}; it has {', '.join(table.header)}")
        used = dict.fromkeys(found for ours in NUMBERS if (found := self._source(ours)) is not None)
        self.numbers = table.numbers([*used])

    def runs(self) -> Runs:
        loss = self._need("loss")
        n_active, counts_embedding = self._n_active()
        tokens = self._count("tokens")
        flops = self._numbers("flops")
        if n_active is None and tokens is not None and flops is not None:
            n_active = flops / (6 * BILLION**2 * tokens)
            self.notes.append("n_active is derived from the training compute: N = C / (6 D)")
        if tokens is None and n_active is not None and flops is not None:
            tokens = flops / (6 * BILLION**2 * n_active)
            self.notes.append("tokens are derived from the training compute: D = C / (6 N)")
        if n_active is None or tokens is None:
            raise self._missing("n_active" if n_active is None else "tokens")
        if flops is not None:
            tokens = self._in_billions(n_active, tokens, flops)
        values = {"n_active": n_active, "tokens": tokens, **self._knobs(n_active)}
        if "experts" in values:  # a dense model has granularity 1 and no shared expert by definition
            dense = values["experts"] == 1
            values |= {name: np.where(dense, LEAST[name], values[name]) for name in values.keys() & {*FIELDS[3:]}}
        usable = self._usable(loss, values)
        kept = self._drop_doubles(np.flatnonzero(usable), loss, values)
        if not len(kept):
            raise DataError(f"{self.table.path} has no usable run: {'; '.join(self.notes)}")
        if np.median(loss[kept]) > 15:
            self.notes.append("the losses are above 15: they must be nats a token, not perplexities or percent")
        ids = self._ids()
        return Runs(
            points=Points(**{name: array[kept] for name, array in values.items()}),
            loss=loss[kept],
            ids=tuple(ids[place] for place in kept),
            repeated=self._repeated(tokens)[kept],
            counts_embedding=counts_embedding,
            held_out=None if (held_out := self._flags("held_out")) is None else held_out[kept] == 1,
            notes=tuple(self.notes),
        )

    def _source(self, ours: str) -> str | None:
        theirs = self.columns.get(ours, ours)
        return theirs if theirs in self.table.header else None

    def _numbers(self, ours: str) -> Array | None:
        theirs = self._source(ours)
        return None if theirs is None else self.numbers[theirs]

    def _flags(self, ours: str) -> Array | None:
        """The column as 0 and 1, which may be written in words or numbers; NaN where it is empty. DataError for
        anything else.
        """
        theirs = self._source(ours)
        if theirs is None:
            return None
        flags = self.numbers[theirs].copy()
        for place, text in enumerate(self.table.texts(theirs)):
            flags[place] = _FLAGS.get(text.lower(), flags[place])
            if flags[place] not in (0, 1) and text.lower() not in ("", "nan", "na", "none", "null"):
                line = self.table.rows[place].line
                raise DataError(f"{self.table.path}, line {line}: {theirs} is {text!r}, but must be 0 or 1")
        return flags

    def _count(self, ours: str) -> Array | None:
        """The column in 1e9, whichever of the two units it has."""
        values = self._numbers(ours)
        if values is None:
            return None
        positive = values[np.isfinite(values) & (values > 0)]
        if positive.size and positive.max() >= LEAST_COUNT:
            if positive.min() < LEAST_COUNT:
                lines = [
                    self.table.rows[int(np.flatnonzero(values == end)[0])].line
                    for end in (positive.min(), positive.max())
                ]
                raise DataError(
                    f"{self.table.path}: {self._source(ours)} mixes plain counts and billions ({positive.min():g} in "
                    f"line {lines[0]}, {positive.max():g} in line {lines[1]}): write all of them in one unit"
                )
            return values / BILLION
        if positive.size:
            self.notes.append(
                f"{self._source(ours)} is read as billions, as none of it ({positive.min():g} to {positive.max():g}) "
                "reaches 1e5"
            )
        return values

    def _in_billions(self, n_active: Array, tokens: Array, flops: Array) -> Array:
        """`tokens`, converted if the compute shows that they were counts; a note if it shows neither."""
        ratios = flops / (6 * BILLION**2 * n_active * tokens)
        known = ratios[np.isfinite(ratios)]
        ratio = float(np.median(known)) if known.size else 1.0
        if 0.1 < ratio * BILLION < 10:
            self.notes = [note for note in self.notes if "read as billions" not in note]
            return tokens / BILLION
        if not 0.1 < ratio < 10:
            self.notes.append(f"{self._source('flops')} is not used: it is {ratio:.2g} times 6 N D")
        return tokens

    def _n_active(self) -> tuple[Array | None, bool | None]:
        whole, without = self._source("n_active"), self._source("n_active_no_embedding")
        if "n_active" not in self.columns and (whole is None or "n_active_no_embedding" in self.columns) and without:
            return self._count("n_active_no_embedding"), False
        counts = None
        if whole == "n_active_no_embedding":
            counts = False
        elif whole is not None and without is not None:
            counts = True
            self.notes.append(
                "n_active counts the embedding; --columns n_active=n_active_no_embedding takes the other column"
            )
        return self._count("n_active"), counts

    def _knobs(self, n_active: Array) -> dict[str, Array]:
        found = {name: self._numbers(name) for name in FIELDS[2:4]} | {"shared": self._flags("shared")}
        knobs = {name: values for name, values in found.items() if values is not None}
        if "experts" not in knobs and (n_total := self._count("n_total")) is not None:
            knobs["experts"] = np.maximum(n_total / n_active, 1)
            self.notes.append(
                "there is no column experts: E is taken as n_total / n_active, which is less than the expansion of "
                "the FFN alone; --columns experts=NAME names a better one"
            )
        return knobs

    def _usable(self, loss: Array, values: Mapping[str, Array]) -> NDArray[np.bool_]:
        rows = self.table.rows
        usable = self._asked_for()
        if short := [row for row in rows if row.lacks]:
            cells = few(f"line {row.line}: {len(row.cells) - row.lacks}" for row in short)
            header = len(self.table.header)
            self.notes.append(
                f"{counted(len(short), 'run')} left out: fewer cells than the {header} of the header ({cells})"
            )
        usable &= np.array([not row.lacks for row in rows])
        for name, array in (("loss", loss), *values.items()):
            positive = name in ("loss", "n_active", "tokens")
            good = np.isfinite(array) & (array > 0 if positive else array >= LEAST[name])
            bad = np.flatnonzero(usable & ~good)
            if len(bad):
                rule = "a number above 0" if positive else f"a number of at least {LEAST[name]:g}"
                self.notes.append(
                    f"{counted(len(bad), 'run')} left out: {name} is not {rule} ({self._cells(name, bad)})"
                )
            usable &= good
        rate = self._numbers("rate")  # in a sweep: the learning rate divided by the rule's
        if rate is not None and np.any(rate == 1):
            other = np.isfinite(rate) & (rate != 1)
            trials = np.flatnonzero(usable & other)
            if len(trials):
                self.notes.append(
                    f"{counted(len(trials), 'run')} left out: at another learning rate than the sweep's rule, since "
                    f"{self._source('rate')} is not 1 ({self._cells('rate', trials)})"
                )
            usable &= ~other
        elif rate is not None:
            self.notes.append(f"{self._source('rate')} is not used: it is nowhere 1, as it is at a sweep's own rates")
        return usable

    def _asked_for(self) -> NDArray[np.bool_]:
        """The rows that `only` selects, or all of them without it. UsageError for a pattern that matches none."""
        ids, theirs = self._named(), self._source("block")
        blocks = [""] * len(ids) if theirs is None else self.table.texts(theirs)
        asked = np.full(len(ids), not self.only)
        for pattern in self.only:
            names = ((name, *block.split("+")) for name, block in zip(ids, blocks, strict=True))
            matched = np.array([any(fnmatchcase(name, pattern) for name in row if name) for row in names], bool)
            if not matched.any():
                raise UsageError(f"{self.table.path} has no run whose id or block matches {pattern!r}")
            asked |= matched
        if self.only:
            self.notes.append(
                f"{asked.sum()} of {counted(len(ids), 'run')} taken: those that {', '.join(self.only)} matches"
            )
        return asked

    def _drop_doubles(self, places: NDArray[np.intp], loss: Array, values: Mapping[str, Array]) -> NDArray[np.intp]:
        """Keeps the last of the rows with equal id and knobs: it is a run that was repeated or written twice.

        Rows without an id are the same run if all their cells are equal, except for a running number; 5e7 equals
        50000000.
        """
        names, ids = self._named(), self._ids()
        compared = [self._comparable(name) for name in self.table.header if name and not name.startswith("Unnamed:")]
        last: dict[tuple[Any, ...], np.intp] = {}
        for place in places:
            same = (ids[place], *(array[place] for array in values.values())) if names[place] else ()
            last[same or tuple(column[place] for column in compared)] = place
        kept = np.array(sorted(last.values()), np.intp)
        if doubles := [place for place in places if place not in {*kept}]:
            what = "the same id and knobs come" if any(names[place] for place in doubles) else "the same row comes"
            lines = few(f"line {self.table.rows[place].line}" for place in doubles)
            self.notes.append(f"{counted(len(doubles), 'run')} left out: {what} again in a later line ({lines})")
        named = [ids[place] for place in kept]
        if several := sorted({name for name in named if named.count(name) > 1}):
            self.notes.append(
                f"{counted(len(several), 'id')} of several different runs, such as {several[0]!r}: all are kept"
            )
        return kept

    def _comparable(self, name: str) -> list[float | str]:
        """The cells of a column as numbers if they are numbers, else as text."""
        texts = self.table.texts(name)
        numbers = self.numbers.get(name)
        if numbers is None:
            return [*texts]
        return [text if np.isnan(number) else float(number) for number, text in zip(numbers, texts, strict=True)]

    def _named(self) -> list[str]:
        """The ids in the table, empty where it has none."""
        theirs = self._source("id")
        return [""] * len(self.table.rows) if theirs is None else self.table.texts(theirs)

    def _ids(self) -> list[str]:
        return [name or f"line {row.line}" for name, row in zip(self._named(), self.table.rows, strict=True)]

    def _repeated(self, tokens: Array) -> NDArray[np.bool_]:
        flags = self._flags("repeated")
        repeated = np.zeros(len(tokens), bool) if flags is None else flags == 1
        if (epochs := self._numbers("epochs")) is not None:
            repeated |= epochs > 1
        if (epoch := self._count("epoch_tokens")) is not None:
            repeated |= tokens > epoch
        return repeated

    def _need(self, ours: str) -> Array:
        values = self._numbers(ours)
        if values is None:
            raise self._missing(ours)
        return values

    def _missing(self, ours: str) -> UsageError:
        return UsageError(
            f"{self.table.path} has no column {ours!r}; it has {', '.join(self.table.header)}: say which it is with "
            f"--columns {ours}=NAME"
        )

    def _cells(self, ours: str, places: NDArray[np.intp]) -> str:
        """The lines of these rows, with the text of the column where the table has it."""
        theirs = self._source(ours)
        texts = [""] * len(self.table.rows) if theirs is None else self.table.texts(theirs)
        said = (f": {texts[place]!r}" if theirs else "" for place in places)
        return few(f"line {self.table.rows[place].line}{text}" for place, text in zip(places, said, strict=True))
