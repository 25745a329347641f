"""The entries of a recipe: which there are, and one sentence for each that is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from mobilemoe.errors import ConfigError

_Kind = TypeVar("_Kind", bound=BaseModel)
_WORDS = {
    "Value error, ": "",
    "Input should": "it should",
    "valid tuple": "list",
    "valid list": "list",
    "valid dictionary": "table",
    "Field required": "it is missing",
}  # pydantic's, and what TOML calls it


def validated(kind: type[_Kind], tables: dict[str, Any], name: str, what: str) -> _Kind:
    """The tables as a `kind`; ConfigError with `name`, the entry, its value and the rule that it breaks."""
    try:
        taken = kind.model_validate(tables)
    except ValidationError as fault:
        first = fault.errors()[0]
        path, value = [str(part) for part in first["loc"]], first["input"]
        given = "" if isinstance(value, dict) else f" is {value!r}"
        if first["type"] == "extra_forbidden":
            rule = "there is no entry of this name" + _alike(kind, path)
        else:
            rule = first["msg"]
            for theirs, ours in _WORDS.items():
                rule = rule.replace(theirs, ours)
        raise ConfigError(f"{name}: {'.'.join(path) or f'the {what}'}{given}: {rule}") from None
    for entry, value, rule in _reread(tables, taken.model_dump(), ""):
        raise ConfigError(f"{name}: {entry} is {json.dumps(value)}: {rule}")
    return taken


def _alike(kind: type[BaseModel], path: Sequence[str]) -> str:
    """A question for the entry beside `path` whose name is most like its own, if one is."""
    *parents, last = path
    tables = [table for table in kinds_at(kind, parents) if issubclass(table, BaseModel)]
    names = get_close_matches(last, [name for table in tables for name in table.model_fields], 1)
    return f"; did you mean {'.'.join((*parents, *names))}?" if names else ""


def _reread(given: Any, taken: Any, entry: str) -> Iterator[tuple[str, Any, str]]:
    """The entries that pydantic takes for values of another kind: true for 1, 1 for true, and "12" for 12."""
    if isinstance(given, dict) and isinstance(taken, dict):
        for name, value in given.items():
            yield from _reread(value, taken.get(name), f"{entry}.{name}" if entry else name)
    elif isinstance(given, list | tuple) and isinstance(taken, list | tuple):
        for place, (value, found) in enumerate(zip(given, taken, strict=False)):
            yield from _reread(value, found, f"{entry}.{place}")
    elif isinstance(taken, bool):
        if not isinstance(given, bool):
            yield entry, given, "it should be true or false, without quotes"
    elif isinstance(taken, int | float) and isinstance(given, bool | str):
        yield entry, given, "it should be a number, without quotes"


def kinds_at(kind: type[BaseModel], path: Sequence[str]) -> set[type]:
    """The types that the entry at `path` of a `kind` may have; empty if there is no such entry."""
    if not path:
        return {kind}
    name, *below = path
    field = kind.model_fields.get(name)
    found = set(_types(field.annotation)) if field is not None else set()
    if not below:
        return found
    tables = [table for table in found if issubclass(table, BaseModel)]
    return set().union(*(kinds_at(table, below) for table in tables))


def _types(annotation: Any) -> Iterator[type]:
    """The classes in an annotation: all those of a union, without their type arguments."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        for part in get_args(annotation):
            yield from _types(part)
    elif origin is Annotated:
        yield from _types(get_args(annotation)[0])
    elif isinstance(origin or annotation, type):
        yield origin or annotation
