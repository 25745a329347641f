"""Finished requests on disk, so that a run that was killed goes on where it was, to the same scores.

lm_eval's own cache pickles into SQLite, commits request by request and never keeps sampled answers; this one is JSONL,
appended a batch at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from mobilemoe.errors import DataError
from mobilemoe.files import cache_folder, write_json


def digest(value: Any) -> str:
    """32 hex digits that stand for a JSON value."""
    return sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]


class Store:
    """Results of requests by key, for one model under one group of settings; `put` returns when they are on disk.

    The folder is named by a hash of `settings`, inside `folder` (default: the user's cache; without a home nothing is
    kept). Several processes may write at a time. DataError where nothing can be written.
    """

    def __init__(self, settings: Mapping[str, Any], folder: Path | None = None) -> None:
        self._results: dict[str, Any] = {}
        self._path: Path | None = None
        try:
            root = cache_folder().parent / "evaluate" if folder is None else folder
        except OSError:
            return
        self._path = root / digest(settings) / "requests.jsonl"
        try:
            write_json(self._path.parent / "settings.json", dict(settings))  # for people who look into the cache
            if self._path.exists():
                self._read(self._path)
        except OSError as fault:
            raise self._refusal(fault) from None

    def __contains__(self, key: str) -> bool:
        return key in self._results

    def __getitem__(self, key: str) -> Any:
        return self._results[key]

    def put(self, results: Mapping[str, Any]) -> None:
        """Keeps JSON values, all of them by one write."""
        self._results |= results
        if self._path is None:
            return
        lines = "".join(json.dumps([key, value], ensure_ascii=False) + "\n" for key, value in results.items())
        try:
            with self._path.open("ab+") as file:
                if file.tell() and not self._ends_a_line():
                    lines = "\n" + lines  # behind a line that a kill tore
                file.write(lines.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as fault:
            raise self._refusal(fault) from None

    def _ends_a_line(self) -> bool:
        assert self._path is not None
        with self._path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"

    def _read(self, path: Path) -> None:
        for line in path.read_bytes().splitlines():
            try:
                key, value = json.loads(line)
            except ValueError:
                continue  # torn by a kill: that batch is computed again
            self._results[key] = value

    def _refusal(self, fault: OSError) -> DataError:
        return DataError(
            f"finished requests cannot be kept in {self._path} ({fault.strerror}): name another folder with --cache"
        )
