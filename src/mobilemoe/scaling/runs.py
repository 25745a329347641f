"""Finished trainings: where they lie (N, D, E, g, s), what loss they reached, and how a table of them is read."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobilemoe.errors import DataError, UsageError

Array = NDArray[np.float64]

BILLION = 1e9
LEAST_COUNT = 1e5  # a column with values from here on holds plain counts, one below it billions
KNOBS = ("n_active", "tokens", "experts", "granularity", "shared")  # the fields of Points
COLUMNS = (
    *("loss", *KNOBS, "n_active_no_embedding", "n_total", "flops", "id"),
    *("repeated", "epochs", "epoch_tokens", "rate"),
)
MAX_BYTES = 64 * 2**20
_LEAST = {"n_active": 0.0, "tokens": 0.0, "experts": 1.0, "granularity": 1.0, "shared": 0.0}
_TRUE, _FALSE = ("1", "true", "yes", "y"), ("", "0", "false", "no", "n", "nan")


@dataclass(frozen=True, kw_only=True)
class Points:
    """Where a law is asked: arrays that broadcast together, and are broadcast and made float64 here.

    n_active and tokens in 1e9; experts is the expansion E (1: dense), granularity g, shared 0 or 1. A dense point has
    granularity 1 and shared 0. UsageError for what no model can have.
    """

    n_active: Array
    tokens: Array
    experts: Any = 1.0
    granularity: Any = 1.0
    shared: Any = 0.0

    def __post_init__(self) -> None:
        try:
            arrays = np.broadcast_arrays(*(np.asarray(getattr(self, name), np.float64) for name in KNOBS))
        except ValueError as fault:
            raise UsageError(f"the columns of these points do not fit together: {fault}") from None
        for name, values in zip(KNOBS, arrays, strict=True):
            least = _LEAST[name]
            allowed = values > 0 if name in ("n_active", "tokens") else values >= least
            wrong = values[~(np.isfinite(values) & allowed)]
            if wrong.size:
                raise UsageError(f"{name} is {wrong.flat[0]:g}, but must be a number {_rule(name)}")
            object.__setattr__(self, name, values)

    @property
    def shape(self) -> tuple[int, ...]:
        return np.shape(self.n_active)

    def __len__(self) -> int:
        return int(np.size(self.n_active))

    def at(self, index: Any) -> Points:
        """The points that a NumPy index or mask picks."""
        return Points(**{name: getattr(self, name)[index] for name in KNOBS})


def _rule(name: str) -> str:
    return f"above {_LEAST[name]:g}" if name in ("n_active", "tokens") else f"of at least {_LEAST[name]:g}"


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Finished trainings, one a place of every array. `notes` say how the table was read and what was left out."""

    points: Points  # one-dimensional
    loss: Array  # nats a token
    ids: tuple[str, ...]
    repeated: NDArray[np.bool_]  # the run saw some data more than once
    counts_embedding: bool | None = None  # does n_active count the embedding? None: unknown
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def flops(self) -> Array:
        """Training compute, 6 N D."""
        result: Array = 6 * BILLION**2 * self.points.n_active * self.points.tokens
        return result

    def at(self, index: Any) -> Runs:
        """The runs that a NumPy index or mask picks."""
        picked = np.arange(len(self))[index]
        return Runs(
            points=self.points.at(picked),
            loss=self.loss[picked],
            ids=tuple(self.ids[place] for place in picked),
            repeated=self.repeated[picked],
            counts_embedding=self.counts_embedding,
            notes=self.notes,
        )


def read_runs(path: Path | str, columns: Mapping[str, str] | None = None) -> Runs:
    """The runs of a CSV file with a header. `columns` maps our names (COLUMNS) to the file's.

    Needed: loss and two of n_active, tokens, flops (the third is D = C / (6 N)). n_active and tokens are plain counts
    where the column has values from 1e5 on, else billions; so few tokens are counts if the compute says so. Without
    an experts column E is n_total / n_active if there is an n_total. Rows without a usable number are left out and
    told in `notes`. DataError and UsageError say what to change.
    """
    path = Path(path)
    header, rows = _read_table(path)
    table = _Table(path, header, rows, dict(columns or {}))
    return table.runs()


def _read_table(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} has more than {MAX_BYTES} bytes, too many for a table of runs")
        text = path.read_text("utf-8-sig")
        first = text.split("\n", 1)[0]
        separator = max(",;\t", key=first.count)
        lines = [line for line in csv.reader(io.StringIO(text), delimiter=separator) if any(map(str.strip, line))]
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (UnicodeDecodeError, csv.Error) as fault:
        raise DataError(f"{path} is not a CSV file: {fault}") from None
    if len(lines) < 2:
        raise DataError(f"{path} has no runs: it needs a header line and one line a run")
    header = [name.strip() for name in lines[0]]
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise DataError(f"{path} has several columns called {twice[0]!r}: rename them")
    return header, lines[1:]


class _Table:
    """A CSV file on its way to Runs; `notes` grows with every decision."""

    def __init__(self, path: Path, header: list[str], rows: list[list[str]], columns: dict[str, str]) -> None:
        self.path, self.header, self.rows, self.columns = path, header, rows, columns
        self.notes: list[str] = []
        for ours, theirs in columns.items():
            if ours not in COLUMNS:
                raise UsageError(f"there is no column {ours!r} to map: choose one of {', '.join(COLUMNS)}")
            if theirs not in header:
                raise UsageError(f"{path} has no column {theirs!r}; it has {', '.join(header)}")

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
        if flops is not None and np.nanmedian(flops / (6 * BILLION**2 * n_active * tokens)) < 1 / LEAST_COUNT:
            tokens = tokens / BILLION
            self.notes = [note for note in self.notes if "read as billions" not in note]
        values = {"n_active": n_active, "tokens": tokens, **self._knobs(n_active)}
        usable = self._usable(loss, values)
        if "experts" in values:  # by definition: there is nothing to cut or to share
            dense = values["experts"] == 1
            values |= {name: np.where(dense, _LEAST[name], values[name]) for name in values.keys() & {*KNOBS[3:]}}
        kept = self._drop_doubles(np.flatnonzero(usable), loss, values)
        if not len(kept):
            raise DataError(f"{self.path} has no usable run: {'; '.join(self.notes)}")
        if np.median(loss[kept]) > 15:
            self.notes.append("the losses are above 15: they must be nats a token, not perplexities or percent")
        ids = self._ids()
        return Runs(
            points=Points(**{name: array[kept] for name, array in values.items()}),
            loss=loss[kept],
            ids=tuple(ids[place] for place in kept),
            repeated=self._repeated(tokens)[kept],
            counts_embedding=counts_embedding,
            notes=tuple(self.notes),
        )

    def _source(self, ours: str) -> str | None:
        theirs = self.columns.get(ours, ours)
        return theirs if theirs in self.header else None

    def _texts(self, ours: str) -> list[str] | None:
        theirs = self._source(ours)
        if theirs is None:
            return None
        place = self.header.index(theirs)
        return [row[place].strip() if place < len(row) else "" for row in self.rows]

    def _numbers(self, ours: str) -> Array | None:
        texts = self._texts(ours)
        return None if texts is None else np.array([_number(text) for text in texts])

    def _count(self, ours: str) -> Array | None:
        """The column in 1e9, whichever of the two units it is in."""
        values = self._numbers(ours)
        if values is None:
            return None
        positive = values[np.isfinite(values) & (values > 0)]
        if positive.size and positive.max() >= LEAST_COUNT:
            if positive.min() < LEAST_COUNT:
                raise DataError(
                    f"{self.path}: {self._source(ours)} mixes plain counts and billions "
                    f"({positive.min():g} to {positive.max():g}): write all of them in one unit"
                )
            return values / BILLION
        if positive.size:
            self.notes.append(
                f"{self._source(ours)} is read as billions, as none of it ({positive.min():g} to {positive.max():g}) "
                "reaches 1e5"
            )
        return values

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
        found = {name: self._numbers(name) for name in KNOBS[2:]}
        knobs = {name: values for name, values in found.items() if values is not None}
        if "experts" not in knobs and (n_total := self._count("n_total")) is not None:
            knobs["experts"] = np.maximum(n_total / n_active, 1)
            self.notes.append(
                "there is no column experts: E is taken as n_total / n_active, which is less than the expansion of "
                "the FFN alone; --columns experts=NAME names a better one"
            )
        return knobs

    def _usable(self, loss: Array, values: Mapping[str, Array]) -> NDArray[np.bool_]:
        usable = np.ones(len(loss), bool)
        for name, array in (("loss", loss), *values.items()):
            positive = name in ("loss", "n_active", "tokens")
            good = np.isfinite(array) & (array > 0 if positive else array >= _LEAST[name])
            bad = np.flatnonzero(usable & ~good)
            if len(bad):
                rule = "a number above 0" if positive else f"a number of at least {_LEAST[name]:g}"
                self.notes.append(f"{count(len(bad))} left out: {name} is not {rule} ({self._lines(bad)})")
            usable &= good
        if (rate := self._numbers("rate")) is not None:  # of a sweep's trials: the learning rate over its rule's
            trials = np.flatnonzero(usable & (rate != 1))
            if len(trials):
                self.notes.append(f"{count(len(trials))} at another learning rate than the sweep's rule are left out")
            usable &= rate == 1
        return usable

    def _drop_doubles(self, places: NDArray[np.intp], loss: Array, values: Mapping[str, Array]) -> NDArray[np.intp]:
        """Of rows with one id and the same knobs the last counts: it is a run that was repeated or written twice."""
        if self._texts("id") is None:
            return places
        ids = self._ids()
        last = {(ids[place], *(array[place] for array in values.values())): place for place in places}
        kept = np.array(sorted(last.values()), np.intp)
        if doubles := len(places) - len(kept):
            self.notes.append(f"{count(doubles)} left out: the same id and knobs come again in a later line")
        names = [ids[place] for place in kept]
        if several := sorted({name for name in names if names.count(name) > 1}):
            self.notes.append(f"{len(several)} ids name several different runs, as {several[0]!r}: all are kept")
        return kept

    def _ids(self) -> list[str]:
        texts = self._texts("id") or [""] * len(self.rows)
        return [text or f"line {number}" for number, text in enumerate(texts, start=2)]

    def _repeated(self, tokens: Array) -> NDArray[np.bool_]:
        repeated = np.zeros(len(tokens), bool)
        for place, text in enumerate(self._texts("repeated") or ()):
            if text.lower() not in (*_TRUE, *_FALSE):
                raise DataError(f"{self.path}, line {place + 2}: repeated is {text!r}, but must be 0 or 1")
            repeated[place] = text.lower() in _TRUE
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
            f"{self.path} has no column {ours!r}; it has {', '.join(self.header)}: say which it is with "
            f"--columns {ours}=NAME"
        )

    def _lines(self, places: Sequence[int] | NDArray[np.intp]) -> str:
        return few(f"line {place + 2}" for place in places)


def _number(text: str) -> float:
    try:
        return float(text.replace("_", ""))
    except ValueError:
        return math.nan


def few(items: Iterable[str], most: int = 3) -> str:
    """The first of the names, for a sentence."""
    listed = list(items)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")


def count(number: int) -> str:
    """ "1 run", "2 runs"."""
    return f"{number} run{'s' if number != 1 else ''}"
