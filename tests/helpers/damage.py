"""A generator of damage: what people, disks and other programs do to files, for the tests of every verb."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Expect = Literal["refused", "same", "either"]
HALF = "\ud800"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 9\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>404</title></head><body>Not found</body></html>\n"
# What may stand in place of any JSON value.
VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "zero": 0,
    "negative": -3,
    "fraction": 0.5,
    "huge": 10**30,
    "tiny": 1e-320,
    "nan": float("nan"),
    "inf": float("inf"),
    "text": "x",
    "no text": "",
    "digits": "12",
    "half": f"a{HALF}b",
    "long": "x" * 200_000,
    "nul": "a\0b",
    "list": [],
    "lists": [[1], ["x"], None],
    "object": {},
    "objects": {"a": {"b": None}},
}
DEEP = "[" * 5000 + "]" * 5000
TOML_VALUES = [
    "",
    "x",
    "true",
    "0",
    "-3",
    "0.5",
    "1e400",
    "nan",
    "inf",
    "-inf",
    '""',
    '"x"',
    '"12"',
    "[]",
    "[1]",
    '["x"]',
    "{}",
]
TOML_VALUES += [
    "{ a = 1 }",
    "2024-01-01",
    "12:00:00",
    "[[]]",
    '"\\u0000"',
    "1" * 30,
    f'"{"x" * 5000}"',
    DEEP,
    '"/dev/zero"',
]
CELLS = [
    "",
    "x",
    "nan",
    "inf",
    "-1",
    "0",
    "1e400",
    "1,5",
    "1.5.5",
    '"',
    "9" * 500,
    "true",
    "0x10",
    "\0",
    "½",
    "=1+1",
    "#DIV/0!",
]
TEMPLATES = {
    "broken": "{% for m in messages %}",
    "unknown tag": "{% nothing %}",
    "undefined": "{{ nobody.is.here }}",
    "wrong type": "{{ messages + 1 }}",
    "division": "{{ 1 / 0 }}",
    "deep loops": "".join(f"{{% for a{n} in range(9) %}}" for n in range(25)) + "x" + "{% endfor %}" * 25,
    "long loop": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "bomb": "{{ 'a' * 10000000000 }}",
    "indent": "{{ messages | tojson(indent=3000000000) }}",
    "attack": "{{ messages.__class__.__mro__[-1].__subclasses__() }}",
    "raise": "{{ raise_exception('no') }}",
    "recursion": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "nested": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "include": "{% include 'x' %}",
    "empty": "",
}


@dataclass(frozen=True)
class Damage:
    """`apply` damages a file of its own; `expect`: the verb must refuse it, or give the same result as before."""

    name: str
    apply: Callable[[Path], None]
    expect: Expect = "either"
    unreadable: bool = False  # for a caller without root's rights


def _written(data: bytes) -> Callable[[Path], None]:
    return lambda path: _replace(path, data)


def _replace(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def of_files() -> Iterator[Damage]:
    """Something else in place of a file."""

    def instead(make: Callable[[Path], None]) -> Callable[[Path], None]:
        def apply(path: Path) -> None:
            path.unlink()
            make(path)

        return apply

    def bind(path: Path) -> None:
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's path is short
        try:
            socket.socket(socket.AF_UNIX).bind(path.name)
        finally:
            os.chdir(here)

    yield Damage("missing", instead(lambda path: None))
    yield Damage("directory", instead(Path.mkdir), "refused")
    yield Damage("fifo", instead(os.mkfifo), "refused")
    yield Damage("socket", instead(bind), "refused")
    yield Damage("dangling link", instead(lambda path: path.symlink_to("nowhere")))
    yield Damage("link to itself", instead(lambda path: path.symlink_to(path.name)))
    yield Damage("link to /dev/zero", instead(lambda path: path.symlink_to("/dev/zero")), "refused")
    yield Damage("link to /dev/null", instead(lambda path: path.symlink_to("/dev/null")), "refused")
    yield Damage("unreadable", lambda path: path.chmod(0), "refused", unreadable=True)
    yield Damage("of 64 GB", lambda path: os.truncate(path, 2**36), "refused")


def of_bytes(data: bytes, kind: str) -> Iterator[Damage]:
    """What happens to the bytes of a file of this kind: json, jsonl, toml, csv, jinja, safetensors or other bytes."""
    text = kind not in ("safetensors", "bytes")
    whole: Expect = "refused" if kind in ("json", "safetensors", "bytes") else "either"
    yield Damage("empty", _written(b""), "either" if kind == "jinja" else "refused")
    yield Damage("zeros", _written(bytes(len(data))), "either" if kind == "jinja" else "refused")
    yield Damage("one byte", _written(data[:1]), whole)
    for eighth in range(1, 8):
        yield Damage(f"cut at {eighth}/8", _written(data[: len(data) * eighth // 8]), whole)
    yield Damage("cut by one", _written(data.rstrip()[:-1]), whole)
    rng = random.Random(kind)
    for number in range(6):
        place, bit = rng.randrange(len(data)), rng.randrange(8)
        flipped = bytearray(data)
        flipped[place] ^= 1 << bit
        yield Damage(f"flipped bit {number}", _written(bytes(flipped)))
    yield Damage("noise", _written(rng.randbytes(len(data) or 1)), "either" if kind == "jinja" else "refused")
    yield Damage("compressed", _written(gzip.compress(data)), "either" if kind == "jinja" else "refused")
    yield Damage("a web page", _written(PAGE), "either" if kind == "jinja" else "refused")
    yield Damage("a pointer of Git LFS", _written(LFS), "either" if kind == "jinja" else "refused")
    yield Damage("garbage behind", _written(data + b"\x00\xff{garbage"), "either" if kind == "jinja" else "refused")
    yield Damage("twice", _written(data + data), whole)
    if text:
        middle = data.rfind(b"\n", 0, len(data) // 2) + 1
        yield Damage("a mark in front", _written(b"\xef\xbb\xbf" + data), "same")
        yield Damage(
            "Windows' line ends", _written(data.replace(b"\n", b"\r\n")), "either" if kind == "jinja" else "same"
        )
        wide: Expect = "same" if kind == "csv" else "either" if kind == "jinja" else "refused"
        yield Damage("UTF-16", _written(data.decode().encode("utf-16")), wide)
        for name, inserted in (("nul", b"\0"), ("latin-1", b"\xfc"), ("half a pair", b"\xed\xa0\x80")):
            yield Damage(f"{name} inside", _written(data[:middle] + inserted + data[middle:]))
        yield Damage("a long line", _written(data[:middle] + b"x" * 2**20 + b"\n" + data[middle:]))


def of_json(data: bytes, depth: int = 3, most: int = 60) -> Iterator[Damage]:
    """What other programs write into a JSON file: each entry (of long lists and objects the first ones) damaged."""
    value = json.loads(data)
    for name, other in VALUES.items():
        yield Damage(f"whole is {name}", _written(_dump(other)), "either" if other == {} else "refused")
    yield Damage("whole is deep", _written(DEEP.encode()), "refused")
    yield Damage("unknown key", _written(_dump(value | {"nobody knows": [1]})))
    for path in _paths(value, depth, most):
        for name, changed in _changes(value, path):
            yield Damage(f"{'.'.join(map(str, path))} {name}", _written(changed))


def _dump(value: Any) -> bytes:
    return json.dumps(value).encode()


def _paths(value: Any, depth: int, most: int) -> Iterator[tuple[Any, ...]]:
    if depth == 0 or not isinstance(value, dict | list):
        return
    keys = list(value)[:most] if isinstance(value, dict) else range(min(len(value), 2))
    for key in keys:
        yield (key,)
        yield from ((key, *rest) for rest in _paths(value[key], depth - 1, 4))


def _changes(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[str, bytes]]:
    def changed(change: Callable[[Any, Any], None]) -> bytes:
        whole = json.loads(json.dumps(value))
        inner = whole
        for key in path[:-1]:
            inner = inner[key]
        change(inner, path[-1])
        return _dump(whole)

    for name, other in VALUES.items():
        yield f"is {name}", changed(lambda inner, key, other=other: inner.__setitem__(key, other))
    yield "is gone", changed(lambda inner, key: inner.pop(key))
    if isinstance(path[-1], str):
        yield "is renamed", changed(lambda inner, key: inner.__setitem__(f"{key}_", inner.pop(key)))
    deep = changed(lambda inner, key: inner.__setitem__(key, "DEEP"))
    yield "is deep", deep.replace(b'"DEEP"', DEEP.encode())


def of_jsonl(data: bytes) -> Iterator[Damage]:
    """One row among good ones is damaged."""
    lines = data.splitlines(keepends=True)
    place = len(lines) // 2

    def with_row(row: bytes) -> Callable[[Path], None]:
        return _written(b"".join([*lines[:place], row + b"\n", *lines[place + 1 :]]))

    value = json.loads(lines[place])
    yield Damage("blank line", _written(b"".join([*lines[:place], b"\n", *lines[place:]])), "same")
    for name in ("{", "nonsense", '{"text": "a"} {"text": "b"}', '{"text": NaN}', '{"text": 1e999}', DEEP, "'text'"):
        yield Damage(f"row {name[:20]}", with_row(name.encode()), "refused")
    for name, other in VALUES.items():
        yield Damage(f"row is {name}", with_row(_dump(other)), "refused")
    for path in _paths(value, 3, 8):
        for name, changed in _changes(value, path):
            yield Damage(f"row's {'.'.join(map(str, path))} {name}", with_row(changed))


def of_toml(data: bytes) -> Iterator[Damage]:
    """Each line "key = value" is damaged in turn."""
    lines = data.decode().splitlines()
    for place, line in enumerate(lines):
        found = re.fullmatch(r"(\s*)([\w.\"]+) = (.*)", line)

        def with_line(text: str, place: int = place) -> Callable[[Path], None]:
            return _written("\n".join([*lines[:place], text, *lines[place + 1 :], ""]).encode())

        if found is None:
            if line.strip():
                yield Damage(f"line {place + 1} is gone", with_line(""))
            continue
        indent, key, value = found.groups()
        yield Damage(f"{key} is gone", with_line(""))
        yield Damage(f"{key} is renamed", with_line(f"{indent}{key}_ = {value}"), "refused")
        yield Damage(f"{key} is there twice", with_line(f"{line}\n{line}"), "refused")
        for other in TOML_VALUES:
            yield Damage(f"{key} = {other[:20]}", with_line(f"{indent}{key} = {other}"))


def of_csv(data: bytes) -> Iterator[Damage]:
    """Cells, rows and columns of a table."""
    rows = [line.split(",") for line in data.decode().splitlines()]
    middle = len(rows) // 2

    def with_rows(changed: list[list[str]]) -> Callable[[Path], None]:
        return _written("".join(",".join(row) + "\n" for row in changed).encode())

    yield Damage("header alone", with_rows(rows[:1]), "refused")
    yield Damage("no header", with_rows(rows[1:]), "refused")
    yield Damage("one cell more", with_rows([*rows[:middle], [*rows[middle], "1"], *rows[middle + 1 :]]), "refused")
    yield Damage("one cell less", with_rows([*rows[:middle], rows[middle][:-1], *rows[middle + 1 :]]))
    yield Damage("a comment", with_rows([["# mine"], *rows]), "refused")
    yield Damage("blank lines", with_rows([[""], rows[0], [""], *rows[1:], [""]]), "same")
    for separator in ";\t|":
        joined = "".join(separator.join(row) + "\n" for row in rows)
        yield Damage(f"separator {separator!r}", _written(joined.encode()), "same")
        named = f"sep={separator}\r\n{joined}".encode("utf-16")
        yield Damage(f"Excel's separator {separator!r}", _written(named), "same")
    for column, name in enumerate(rows[0]):
        yield Damage(f"{name} is renamed", with_rows([[*rows[0][:column], "x", *rows[0][column + 1 :]], *rows[1:]]))
        yield Damage(f"{name} is gone", with_rows([row[:column] + row[column + 1 :] for row in rows]))
        for cell in CELLS:
            row = [*rows[middle][:column], cell, *rows[middle][column + 1 :]]
            yield Damage(f"{name} is {cell[:10]!r}", with_rows([*rows[:middle], row, *rows[middle + 1 :]]))


def of_safetensors(data: bytes) -> Iterator[Damage]:
    """The header's length, its entries, and the numbers behind it."""
    size = int.from_bytes(data[:8], "little")
    header, payload = json.loads(data[8 : 8 + size]), data[8 + size :]

    def with_header(header: bytes, length: int | None = None) -> Callable[[Path], None]:
        length = len(header) if length is None else length
        return _written(length.to_bytes(8, "little") + header + payload)

    for length in (0, 1, size - 1, size + 1, len(data), 2**40, 2**63):
        yield Damage(f"header of {length} bytes", with_header(data[8 : 8 + size], length), "refused")
    yield Damage("header with a mark", with_header(b"\xef\xbb\xbf" + data[8 : 8 + size]))
    yield Damage("header is deep", with_header(DEEP.encode()), "refused")
    for name, other in VALUES.items():
        yield Damage(f"header is {name}", with_header(_dump(other)), "refused")
    names = [name for name in header if name != "__metadata__"]
    for name in ("__metadata__", *names[:1], *names[-1:]):
        for path in [(name,), *((name, key) for key in list(header[name])[:3])]:
            for what, changed in _changes(header, path):
                yield Damage(f"{'.'.join(path)} {what}", with_header(changed))
    for name, number in (("NaN", b"\xff"), ("zero", b"\x00")):
        yield Damage(f"payload of {name}", _written(data[: 8 + size] + number * len(payload)))


def of_templates(_: bytes) -> Iterator[Damage]:
    """Chat templates that are wrong, or would take all time or memory."""
    for name, template in TEMPLATES.items():
        yield Damage(name, _written(template.encode()))


STRUCTURES: dict[str, Callable[[bytes], Iterator[Damage]]] = {
    "json": of_json,
    "jsonl": of_jsonl,
    "toml": of_toml,
    "csv": of_csv,
    "safetensors": of_safetensors,
    "jinja": of_templates,
    "bytes": lambda data: iter(()),
}


def every(data: bytes, kind: str) -> list[Damage]:
    """All damage to a file of this kind that holds `data`."""
    return [*of_files(), *of_bytes(data, kind), *STRUCTURES[kind](data)]
