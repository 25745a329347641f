"""Checks rows of a JSONL file that another program wrote: each field is as required, or a sentence names the rule."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from mobilemoe.data.shards import read_json_lines
from mobilemoe.errors import DataError

_LARGEST = 1e100
_SHOWN = 60  # characters of a value in a sentence
Row = dict[str, Any]


class FieldError(ValueError):
    """A field is missing or not as required; the text names it, its value and the rule."""


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """The objects of a JSONL file (also .gz and .zst), each with its place for messages: "FILE, line 3".

    Raises DataError for a file that cannot be read, and for a line that is no JSON object.
    """
    try:
        for number, row in read_json_lines(path):
            place = f"{path}, line {number}"
            if not isinstance(row, dict):
                raise DataError(f"{place}, is {row!r:.{_SHOWN}}, not an object")
            yield place, row
    except OSError as fault:
        raise DataError(f"{path} cannot be read: {fault.strerror}") from None


def text(row: Row, name: str, *, may_be_blank: bool = False) -> str:
    """A text of at least one visible character, unless it `may_be_blank`."""
    value = _value(row, name)
    if not isinstance(value, str) or not (may_be_blank or value.strip()):
        raise _refusal(name, value, "a text" if may_be_blank else "a text that is not blank")
    return value


def texts(row: Row, name: str, least: int, most: int | None = None) -> list[str]:
    """A list of `least` to `most` texts, none of them blank."""
    value = _value(row, name)
    if least == most:
        count = f"{least}"
    else:
        count = f"{least} or more" if most is None else f"{least} to {most}"
    rule = f"a list of {count} texts that are not blank"
    if not isinstance(value, list) or not least <= len(value) <= (most or len(value)):
        raise _refusal(name, value, rule)
    for each in value:
        if not isinstance(each, str) or not each.strip():
            raise FieldError(f"{name!r} holds {each!r:.{_SHOWN}}, but must be {rule}")
    return value


def whole_number(row: Row, name: str, least: int, most: int) -> int:
    """An integer from `least` to `most`; neither true nor 1.0 is one."""
    value = _value(row, name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise _refusal(name, value, f"a whole number from {least} to {most}")
    return value


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a number, not NaN, and small enough for sums and squares to be finite."""
    return isinstance(value, int | float) and abs(value) <= _LARGEST


def label(row: Row, name: str, choices: list[str]) -> int:
    """The index of the right choice, from 0. The -1 of a hidden test set is refused as such."""
    if _value(row, name) in (-1, "-1", ""):
        raise FieldError(f"{name!r} is {row[name]!r}: this part of the data hides its labels and cannot be scored")
    return whole_number(row, name, 0, len(choices) - 1)


def _value(row: Row, name: str) -> Any:
    if name not in row:
        raise FieldError(f"it has no {name!r}")
    return row[name]


def _refusal(name: str, value: Any, rule: str) -> FieldError:
    return FieldError(f"{name!r} is {value!r:.{_SHOWN}}, but must be {rule}")
