"""Refuses the grammars that llguidance's own limits let pass, although they take it long, or gigabytes.

Whether any text fits several patterns at a time takes it time and memory that double with each pattern: 16 take a
second, 26 took 9 GB before they were stopped. The time for an object grows as the square of its properties: 10,000
take 11 seconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

MOST_OBJECTS = 5_000  # of JSON in one schema
MOST_PATTERNS = 10  # that a text may have to fit at a time
_SCHEMA = re.compile(r"%json\s*")
# What may stand beside `$ref` and asks for nothing more.
_NOTES = {"$ref", "$defs", "definitions", "$id", "$schema", "$comment", "x-guidance"}
_NOTES |= {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}


def check_bounds(grammar: str) -> None:
    """ValueError for a schema that is too large, or that joins parts of schemas and has too many patterns for that."""
    for schema in _schemas(grammar):
        objects = [*_objects(schema)]
        if len(objects) > MOST_OBJECTS:
            raise ValueError(f"a schema may have {MOST_OBJECTS:,} parts, and this one has {len(objects):,}")
        joins = any("allOf" in each or ("$ref" in each and each.keys() - _NOTES) for each in objects)
        patterns = {
            value for each in objects for key in ("pattern", "format") if isinstance(value := each.get(key), str)
        }
        if joins and len(patterns) > MOST_PATTERNS:
            raise ValueError(
                f"a schema with allOf, or with $ref beside other keywords, may have {MOST_PATTERNS} patterns and "
                f"formats, and this one has {len(patterns)}"
            )


def _schemas(grammar: str) -> Iterator[Any]:
    """Those inside a grammar in Lark's form; one in llguidance's own form is JSON as a whole."""
    if grammar.lstrip().startswith("{"):
        starts = [len(grammar) - len(grammar.lstrip())]
    else:
        starts = [found.end() for found in _SCHEMA.finditer(grammar)]
    for start in starts:
        try:
            yield json.JSONDecoder().raw_decode(grammar, start)[0]
        except (ValueError, RecursionError):
            raise ValueError("a schema in the grammar is not JSON, or is nested too deeply") from None


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            yield each
            left += each.values()
        elif isinstance(each, list):
            left += each
