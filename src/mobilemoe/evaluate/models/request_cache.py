"""Finished requests on disk, so that a killed evaluation continues where it was, and reaches the same scores.

lm_eval's own cache pickles into SQLite, commits request by request and never keeps sampled answers; this one is JSONL,
to which a batch is appended at a time.
"""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from mobilemoe.errors import DataError
from mobilemoe.files import open_regular, read_json, write_json
from mobilemoe.user_cache import is_private, usable_cache

MAX_BYTES = 2**32  # of one file; an evaluation in full leaves some megabytes


def digest(value: Any) -> str:
    """32 hex digits that identify a JSON value."""
    return sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]


class RequestCache:
    """Results of requests by key, for one model with one set of settings; `put` returns when they are on disk.

    The folder is named by a hash of `settings`, inside `folder` (default: the user's cache; where that cannot be used,
    a line says so and nothing is kept). Several processes may write at the same time. DataError where nothing can be
    written into `folder`, or where other users may write.
    """

    def __init__(self, settings: Mapping[str, Any], folder: Path | None = None) -> None:
        self._results: dict[str, Any] = {}
        self._path: Path | None = None
        self._is_chosen = folder is not None
        try:
            root = usable_cache("evaluate") if folder is None else folder
            self._path = root / digest(settings) / "requests.jsonl"
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            known = self._path.parent / "settings.json"
            if known.exists() and digest(read_json(known, DataError)) != digest(settings):
                raise OSError(errno.EPERM, "another folder was moved there")
            write_json(known, dict(settings))  # for people who look into the cache
            if self._path.exists():
                self._read(self._path)
        except OSError as fault:
            self._do_without(fault)

    def __contains__(self, key: str) -> bool:
        return key in self._results

    def __getitem__(self, key: str) -> Any:
        return self._results[key]

    def put(self, results: Mapping[str, Any]) -> None:
        """Keeps JSON values, all of them in one write."""
        self._results |= results
        if self._path is None:
            return
        lines = "".join(json.dumps([key, value], ensure_ascii=False) + "\n" for key, value in results.items())
        try:
            with open(self._path, "ab+", opener=partial(os.open, mode=0o600)) as file:
                if file.tell() and not self._ends_a_line():
                    lines = "\n" + lines  # after a line that a kill cut off
                file.write(lines.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as fault:
            self._do_without(fault)

    def _ends_a_line(self) -> bool:
        assert self._path is not None
        with self._path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"

    def _read(self, path: Path) -> None:
        with open_regular(path, DataError) as file:
            if not (is_private(path.parent) and is_private(path)):
                raise OSError(errno.EPERM, "another user could have written its answers")
            if (size := os.fstat(file.fileno()).st_size) > MAX_BYTES:
                raise OSError(errno.EFBIG, f"it is {size} bytes, more than the {MAX_BYTES} that it may have")
            for line in file:
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError):
                    continue  # torn by a kill: that batch is computed again
                if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and _is_result(entry[1]):
                    self._results[entry[0]] = entry[1]

    def _do_without(self, fault: OSError) -> None:
        reason = fault.strerror or str(fault)
        if self._is_chosen:
            raise DataError(
                f"finished requests cannot be kept in {self._path} ({reason}): name another folder with --cache"
            ) from None
        self._path = None
        print(f"mobilemoe: finished requests cannot be kept ({reason}): --cache names a folder", file=sys.stderr)


def _is_result(value: Any) -> bool:
    """Whether it has the form of a log-likelihood, [nats, greedy], or of an answer, [text, tokens, capped]."""
    if not isinstance(value, list):
        return False
    kinds = [type(each) for each in value]
    return (kinds == [float, bool] and not math.isnan(value[0])) or kinds == [str, int, bool]
