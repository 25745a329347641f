"""Reads CSV tables as people and spreadsheets write them, in any usual encoding and with any usual separators."""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mobilemoe.errors import DataError, MobileMoEError
from mobilemoe.files import read_bytes

MAX_BYTES = 64 * 2**20
SEPARATORS = ",;\t|"
_MARKS = (  # longer marks first, because UTF-32's begins like UTF-16's
    *((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32")),
    *((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")),
)
_OTHERS = {  # first bytes of files that are often mistaken for CSV
    b"PK\x03\x04": "a spreadsheet's own file (or another ZIP archive): save it as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook: save it as CSV",
    b"\x1f\x8b": "compressed: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed: unpack it first",
    b"PAR1": "Parquet: write it as CSV",
}
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_SEP_LINE = re.compile(r' *"?sep=(.)"?[ ,;\t|]*', re.IGNORECASE)  # Excel's first line, which names the separator
_BETWEEN_GROUPS = re.compile(r"(?<=\d)[ \u00a0\u2009\u202f'\u2019](?=\d{3}(?!\d))")
_FIGURES = re.compile(r"[+-]?(?P<digits>[\d.,]*\d[\d.,]*)(?P<exponent>e[+-]?\d+)?", re.IGNORECASE)
_OTHER_SIGN = {".": ",", ",": "."}


@dataclass(frozen=True)
class Row:
    """The cells of a row, without the blanks around them and as many as the header has; `line` is where it begins."""

    line: int
    cells: tuple[str, ...]
    lacks: int = 0  # number of cells missing at the end of the row


@dataclass(frozen=True)
class Table:
    """A header and the rows under it. `notes` list what had to be guessed."""

    path: Path
    header: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = field(default=(), compare=False)

    def texts(self, column: str) -> list[str]:
        """The cells of a column."""
        place = self.header.index(column)
        return [row.cells[place] for row in self.rows]

    def plain(self) -> list[dict[str, str]]:
        """The rows as text by column, numbers with "." before fractions and nothing between thousands."""
        columns = {name: self.texts(name) for name in self.header}
        numeric = [name for name, texts in columns.items() if all(map(_FIGURES.fullmatch, filter(None, texts)))]
        for name, sign in self.decimal_signs(numeric).items():
            columns[name] = [text.replace(_OTHER_SIGN[sign], "").replace(sign, ".") for text in columns[name]]
        return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]

    def numbers(self, columns: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """These columns as numbers, NaN where a cell holds none.

        The meaning of "." and "," is inferred from all of these columns. Raises DataError if they have both meanings,
        or if a number such as 1,500 can be read in two ways.
        """
        signs = self.decimal_signs(columns)
        return {name: np.array([_number(text, signs[name]) for text in self.texts(name)]) for name in columns}

    def decimal_signs(self, columns: Sequence[str]) -> dict[str, str]:
        """The decimal sign, "." or ",", of each of these columns; DataError as `numbers`."""
        decimal: dict[str, str] = {}  # by sign: where it certainly precedes a fraction
        thousands: dict[str, dict[str, str]] = {
            ".": {},
            ",": {},
        }  # by sign and column: where it certainly separates groups
        unclear: dict[str, dict[str, tuple[str, str]]] = {".": {}, ",": {}}
        for name in columns:
            for row, text in zip(self.rows, self.texts(name), strict=True):
                sign, role = _role_of_sign(text)
                where = f"{name} is {text!r} in line {row.line}"
                if role == "decimal":
                    decimal.setdefault(sign, where)
                elif role == "thousands":
                    thousands[sign].setdefault(name, where)
                elif role == "unclear":
                    unclear[sign].setdefault(name, (where, text))
        if len(decimal) == 2:
            raise DataError(f"{self.path} has two decimal signs ({'; '.join(decimal.values())}): write all alike")
        for sign, where in decimal.items():
            if thousands[sign]:
                between = next(iter(thousands[sign].values()))
                raise DataError(
                    f"{self.path} has {sign!r} before fractions and between thousands ({where}; {between}): "
                    "write the numbers without thousands separators"
                )
        for sign, columns_of_sign in unclear.items():
            for name, (where, text) in columns_of_sign.items():
                clear = decimal or name in thousands[sign] or (sign == "." and not thousands[sign])
                if not clear:
                    raise DataError(
                        f"{self.path}: {where}, which can be {_number(text, sign):g} or "
                        f"{_number(text, _OTHER_SIGN[sign]):g}: write numbers without thousands separators"
                    )
        of_all = next(iter(decimal), None)
        return {name: of_all or ("," if name in thousands["."] else ".") for name in columns}


def read_table(path: Path | str, error: type[MobileMoEError] = DataError) -> Table:
    """The table in a CSV file of at most 64 MiB; `error` with one sentence, and the line, if it is none.

    Read are UTF-8 and UTF-16 with or without a byte-order mark, and Windows-1252 (a note says so); commas, semicolons,
    tabs and bars as separators, also as Excel's first line "sep=;" names them. Blank lines, and empty cells beyond the
    header's, are passed over. A row with more cells than the header is an error, one with fewer says so in `lacks`.
    """
    path = Path(path)
    text, notes = _text(path, error)
    rows = list(_rows(path, text, error))
    if len(rows) < 2:
        raise error(f"{path} has no rows: it needs a header line, and a line for each run under it")
    (header_line, first), *rest = rows
    header = tuple(first[: _width(first)])
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise error(f"{path}, line {header_line}, has several columns called {twice[0]!r}: rename them")
    width, found = len(header), []
    for line, cells in rest:
        if _width(cells) > width == 1:
            raise error(
                f"{path}, line {line}, has {_width(cells)} cells, but line {header_line} has only {first[0]!r}: remove "
                "what stands above the header"
            )
        if _width(cells) > width:
            raise error(
                f"{path}, line {line}, has {_width(cells)} cells where the header has {width}: a separator within a "
                f"cell must be in quotes ({cells[width]!r} is the first cell too many)"
            )
        lacks = max(0, width - len(cells))
        found.append(Row(line, (*cells[:width], *[""] * lacks), lacks))
    return Table(path, header, tuple(found), tuple(notes))


def _text(path: Path, error: type[MobileMoEError]) -> tuple[str, list[str]]:
    data = read_bytes(path, error, MAX_BYTES)
    for beginning, what in _OTHERS.items():
        if data.startswith(beginning):
            raise error(f"{path} is {what}")
    encoding, notes = _encoding(data), []
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as fault:
        if encoding != "utf-8":
            raise error(f"{path} is not a CSV file: it is no {encoding.upper()} text at byte {fault.start}") from None
        text = data.decode("cp1252", errors="replace")
        notes.append(f"{path.name} is not UTF-8 text (byte {fault.start}): read as Windows-1252")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if control := _CONTROL.search(text):
        line = text.count("\n", 0, control.start()) + 1
        raise error(f"{path} is not a CSV file: line {line} holds the control character {control[0]!r}")
    return text, notes


def _encoding(data: bytes) -> str:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding
    start = data[:1000]
    if start[1::2].count(0) > len(start) // 4:
        return "utf-16-le"
    return "utf-16-be" if start[::2].count(0) > len(start) // 4 else "utf-8"


def _rows(path: Path, text: str, error: type[MobileMoEError]) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not empty, with the lines on which they begin."""
    first, _, rest = text.partition("\n")
    named = _SEP_LINE.fullmatch(first)
    skipped = 1 if named else 0
    line = skipped
    try:
        separator = named[1] if named else _separator(text)
        lines = io.StringIO(rest if named else text)
        reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
        for cells in reader:
            begins, line = line + 1, skipped + reader.line_num
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                yield begins, stripped
    except (csv.Error, ValueError, TypeError) as fault:  # the last two of a separator that cannot be one
        raise error(f"{path} is not a CSV file: {fault} in the row that begins in line {line + 1}") from None


def _separator(text: str) -> str:
    """The separator that splits the first non-empty line into most cells, quotes respected."""
    header = next((line for line in text.split("\n") if line.strip(" ,;\t|")), "")

    def cells(separator: str) -> int:
        return len(next(csv.reader([header], delimiter=separator), ()))

    return max(SEPARATORS, key=cells)


def _width(cells: Sequence[str]) -> int:
    """How many cells there are up to the last one that is not empty."""
    return max((place for place, cell in enumerate(cells, 1) if cell), default=0)


def _role_of_sign(text: str) -> tuple[str, str]:
    """The sign in a number, and whether it is certainly "decimal", certainly "thousands" or "unclear"; else "", ""."""
    matched = _FIGURES.fullmatch(_ungrouped(text))
    digits = matched["digits"] if matched else ""
    signs = [character for character in digits if character in ".,"]
    if not signs:
        return "", ""
    last = signs[-1]
    if len({*signs}) == 2 and signs.count(last) == 1:
        return last, "decimal"
    if len(signs) > 1:
        return (last, "thousands") if _grouped(digits, last) else ("", "")
    if (matched and matched["exponent"]) or not _grouped(digits, last) or digits.startswith("0"):
        return last, "decimal"
    return last, "unclear"


def _grouped(digits: str, sign: str) -> bool:
    """Whether these are digits in groups of three with `sign` between them."""
    first, *groups = digits.split(sign)
    return 1 <= len(first) <= 3 and all(len(group) == 3 for group in groups)


def _ungrouped(text: str) -> str:
    """Removes blanks and apostrophes between groups of three digits, where they have only one meaning."""
    return _BETWEEN_GROUPS.sub("", text)


def _number(text: str, decimal: str) -> float:
    """The number in a cell, NaN if there is none."""
    text = _ungrouped(text)
    whole, sign, fraction = text.rpartition(decimal) if decimal in text else (text, "", "")
    thousands = _OTHER_SIGN[decimal]
    if thousands in fraction:
        return math.nan
    if thousands in whole:
        if not _grouped(whole.lstrip("+-"), thousands):
            return math.nan
        whole = whole.replace(thousands, "")
    try:
        return float(f"{whole}{'.' if sign else ''}{fraction}")
    except ValueError:
        return math.nan
