"""The results of an evaluation: a JSON file, and the scored examples in a JSONL beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from mobilemoe.errors import DataError
from mobilemoe.evaluate.results.rows import is_number
from mobilemoe.files import numbered, read_bytes, read_json, write_atomic, write_json

_KINDS: dict[str, type | tuple[type, ...]] = {
    "model": dict,
    "engine": dict,
    "suite": str,
    "limit": (int, type(None)),
    "results": dict,
    "missing": dict,
    "counts": dict,
    "speed": dict,
    "examples": str,
    "seconds": (int, float),
}
_KEYS = {  # that every file of ours has in these objects
    "model": (
        "name",
        "hash",
        "parameters",
        "active_parameters",
        "int4_bytes",
        "flops_per_token",
        "quantization",
        "context",
    ),
    "engine": ("backend", "activations", "threads", "version"),
    "counts": ("left_truncations", "token_cap_hits"),
}
_COUNTS = ("parameters", "active_parameters", "int4_bytes", "flops_per_token", "context")
_NAMES = {str: "a text", int: "a whole number", bool: "true or false", dict: "an object"}
_ROW_KINDS = {"main_metric": str, "n": int, "shots": int, "published": bool, "note": str, "prompt": str, "parts": dict}
# A scored example: benchmark, id, correct (its value of the main metric), tokens (of its longest request and answer).
Example = dict[str, Any]
ROW_FACTS = ("main_metric", "n", "shots", "version", "published")


@dataclass(frozen=True, kw_only=True)
class Results:
    """Scores of one model on one suite; what is not known is None.

    model: name, hash, parameters, active_parameters, int4_bytes, flops_per_token (of a decoded token, without
    attention), quantization, context in tokens. engine: backend, activations, kv, threads, version. results: by
    benchmark, its main_metric, each metric's mean (0 to 1 for shares) and its standard error as "<metric>_stderr", n
    examples, shots, the task's version, whether the paper published the shots, the Hub's data sets as
    "ORG/NAME@COMMIT", and the `parts` of a benchmark with several tasks. missing: by benchmark, why it was not run.
    counts: left_truncations (requests that lost their beginning) and token_cap_hits (answers cut short). examples: the
    name of the JSONL file beside it, empty until there is one.
    """

    model: dict[str, Any]
    engine: dict[str, Any]
    suite: str
    limit: int | None
    results: dict[str, dict[str, Any]]
    missing: dict[str, str]
    counts: dict[str, int]
    speed: dict[str, float | None]
    examples: str
    seconds: float


def write_results(results: Results, path: Path | str) -> None:
    """Writes `results` as JSON, in one step."""
    write_json(path, asdict(results))


def save_results(
    results: Results, examples: Iterable[Example], folder: Path, name: str, longer: str | None = None
) -> Path:
    """Writes both into `folder`, as NAME.json and NAME.jsonl, and returns the path of the first.

    Only the same results, made again, are replaced: beside all else the new ones are LONGER (NAME where it is None),
    LONGER-2 and so on.
    """
    lines = "".join(json.dumps(example, ensure_ascii=False) + "\n" for example in examples).encode()

    def may_take(path: Path) -> bool:
        return _is_free(path) or _holds(path, results, lines)

    path = folder / f"{name}.json"
    if not may_take(path):
        path = numbered(folder / f"{longer or name}.json", may_take)
    write_atomic(path.with_suffix(".jsonl"), lines)
    write_results(replace(results, examples=path.with_suffix(".jsonl").name), path)
    return path


def _is_free(path: Path) -> bool:
    return not any(os.path.lexists(each) for each in (path, path.with_suffix(".jsonl")))


def _holds(path: Path, results: Results, lines: bytes) -> bool:
    """Whether `path` and the JSONL beside it have these scores of this model: the time that it took may be another."""
    beside = path.with_suffix(".jsonl")
    try:
        same_lines = not beside.exists() or read_bytes(beside, DataError, len(lines)) == lines
        return same_lines and _identity(read_results(path)) == _identity(results)
    except DataError:
        return False


def _identity(results: Results) -> Any:
    engine = {key: value for key, value in results.engine.items() if key not in ("threads", "version")}
    found = (results.model, engine, results.suite, results.limit, results.results)
    return json.loads(json.dumps(found))  # tuples are lists in a file


def read_results(path: Path | str) -> Results:
    """The results in a file that `write_results` made; DataError for any other file."""
    found = read_json(Path(path), DataError)
    for name, kind in _KINDS.items():
        if name not in found or not isinstance(found[name], kind):
            raise _refusal(path, f"its {name!r} is missing or of another kind")
    for name, keys in _KEYS.items():
        _check_keys(path, name, found[name], keys)
    model, counts = found["model"], found["counts"]
    known = {**found["speed"], **{name: model[name] for name in _COUNTS}}
    for name, value in {"seconds": found["seconds"], **counts, **known}.items():
        if not is_number(value) and not (value is None and name in known):
            raise _refusal(path, f"its {name} is {value!r:.60}, but must be a number")
    if not isinstance(model["name"], str):
        raise _refusal(path, f"its model's name is {model['name']!r:.60}, but must be a text")
    for name, reason in found["missing"].items():
        if not isinstance(reason, str):
            raise _refusal(path, f"why {name} is missing is {reason!r:.60}, but must be a text")
    for name, row in found["results"].items():
        _check_row(path, name, row)
    return Results(**{field.name: found[field.name] for field in fields(Results)})


def _check_row(path: Path | str, name: str, row: object) -> None:
    _check_keys(path, f"results of {name}", row, ROW_FACTS)
    assert isinstance(row, dict)
    for fact, kind in _ROW_KINDS.items():
        if fact in row and not isinstance(row[fact], kind):
            raise _refusal(path, f"{fact} of {name} is {row[fact]!r:.60}, but must be {_NAMES[kind]}")
    if not is_number(row.get(row["main_metric"])):
        raise _refusal(path, f"{name} has no number for its main metric")
    for key, value in row.items():
        if key.endswith("_stderr") and value is not None and not (is_number(value) and value >= 0):
            raise _refusal(path, f"{key} of {name} is {value!r:.60}, but must be a number that is not negative")
        if isinstance(value, int | float) and not is_number(value):
            raise _refusal(path, f"{key} of {name} is {value!r:.60}, which is no number of any use")


def _check_keys(path: Path | str, name: str, value: object, keys: Iterable[str]) -> None:
    missing = [key for key in keys if not isinstance(value, dict) or key not in value]
    if missing:
        raise _refusal(path, f"its {name} lack {', '.join(missing)}")


def _refusal(path: Path | str, why: str) -> DataError:
    return DataError(f"{path} holds no results of an evaluation: {why}")
