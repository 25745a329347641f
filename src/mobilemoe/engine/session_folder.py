"""A folder of saved sessions, from which a later process goes on. Nobody but its owner can read or change them.

A file of another model, and one that is damaged, is left alone and not used.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from mobilemoe.engine.core import Core, Session
from mobilemoe.errors import CheckpointError, UsageError
from mobilemoe.files import clear_abandoned, hold_folder
from mobilemoe.user_cache import is_private

_SUFFIX = ".session"


class SessionFolder:
    """Held against other processes until `close`. UsageError if it cannot be used, or others may change it."""

    def __init__(self, path: Path, engine: Core) -> None:
        self._path, self._engine, self._held = path, engine, ExitStack()
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not is_private(path):
                raise UsageError(f"{path} is no folder that only you can change: sessions are not kept there")
            self._held.enter_context(hold_folder(path, UsageError))
            clear_abandoned(path, ".", ".part")
        except OSError as fault:
            self._held.close()
            raise UsageError(f"{path} cannot keep sessions: {fault.strerror}") from None

    def close(self) -> None:
        self._held.close()

    def saved(self) -> Iterator[tuple[Path, int, list[int]]]:
        """Each session of this model, its file's bytes and its tokens; the one that was used longest ago comes first.

        One sentence on standard error says what is ignored.
        """
        ignored: list[str] = []
        for path in sorted(self._path.glob(f"*{_SUFFIX}"), key=_used):
            try:
                if not is_private(path):
                    raise CheckpointError(f"{path} is no file that only you can change")
                yield path, path.stat().st_size, self._engine.saved_tokens(path)
            except (CheckpointError, OSError) as fault:
                ignored.append(str(fault))
        if ignored:
            tell(f"{ignored[0]}: it is ignored" + (f", and so are {len(ignored) - 1} more" if ignored[1:] else ""))

    def save(self, session: Session) -> Path:
        """CheckpointError if it cannot be written."""
        path = self._path / f"{secrets.token_hex(8)}{_SUFFIX}"
        session.save(path)
        return path

    def note_use(self, paths: Sequence[Path]) -> None:
        """Notes in which order the files were used, the latest last."""
        now = time.time_ns()
        for age, path in enumerate(reversed(paths)):
            with suppress(OSError):
                os.utime(path, ns=(now, now - age * 1_000_000))


def tell(sentence: str) -> None:
    print(f"mobilemoe: {sentence}", file=sys.stderr)


def _used(path: Path) -> float:
    with suppress(OSError):
        return path.lstat().st_mtime
    return 0.0
