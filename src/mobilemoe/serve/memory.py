"""How much memory the texts that run and the kept sessions may take, and where sessions outlive the server."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mobilemoe.engine import Engine
from mobilemoe.engine.prefix_cache import PrefixCache, PrefixStats, longest_text
from mobilemoe.engine.session_folder import SessionFolder, tell
from mobilemoe.errors import UsageError
from mobilemoe.serve.metrics import Metrics

_LEAST_TEXT = 64  # tokens: a server for shorter texts is of no use
_MOST_KEPT = 2**30  # bytes of kept sessions where no limit is given


@dataclass(frozen=True)
class Memory:
    """`limit`: bytes of weights that are not mapped from a file, of keys and values of the texts that run, and of kept
    sessions. `folder`: where sessions are kept when the server ends.
    """

    limit: int | None = None
    folder: Path | None = None

    def open_cache(self, engine: Engine) -> PrefixCache:
        """Limits the engine's context to what fits. UsageError if that is next to nothing, or the folder is not fit."""
        total = None
        if self.limit is not None:
            total, context = self.limit - engine.weight_bytes, engine.context
            engine.context = longest_text(engine, total)
            if engine.context < min(_LEAST_TEXT, context):
                raise UsageError(
                    f"--max-memory is {self.limit:,} bytes, but the weights take {engine.weight_bytes:,} and the keys "
                    f"and values of {_LEAST_TEXT} tokens {engine.kv_bytes(_LEAST_TEXT):,}"
                )
            if engine.context < context:
                tell(f"--max-memory holds texts of {engine.context:,} tokens, the model could take {context:,}")
        folder = None if self.folder is None else SessionFolder(self.folder, engine)
        most = min(_MOST_KEPT, _physical_bytes() // 8) if total is None else total
        return PrefixCache(engine, most=most, total=total, folder=folder)


def watch(metrics: Metrics, read: Callable[[], PrefixStats]) -> None:
    """Shows what the cache of prefixes does."""
    for name, meaning in (
        ("prefix_hits", "Texts of which a part was there already"),
        ("prefix_hit_tokens", "Tokens of prompts that were not computed again"),
        ("prefix_evictions", "Sessions that left the memory to make room"),
    ):
        metrics.watch(f"mobilemoe_{name}", meaning, _reader(read, name.removeprefix("prefix_")), "counter")
    for name, meaning in (
        ("kept_sessions", "Sessions of texts that have ended, in memory"),
        ("kept_bytes", "Memory of their keys and values"),
        ("running_bytes", "Memory set aside for keys and values of the texts that run"),
        ("saved_sessions", "Sessions in the folder"),
        ("saved_bytes", "Bytes of their files"),
    ):
        metrics.watch(f"mobilemoe_{name}", meaning, _reader(read, name.removeprefix("kept_")), "gauge")


def _reader(read: Callable[[], PrefixStats], field: str) -> Callable[[], float]:
    return lambda: float(getattr(read(), field))


def _physical_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
