"""How much memory the texts that run and the kept sessions may take, and where sessions outlive the server."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from mobilemoe.engine import Engine
from mobilemoe.engine.prefix_cache import PrefixCache, PrefixStats, longest_text
from mobilemoe.engine.session_folder import SessionFolder, tell
from mobilemoe.serve.metrics import Metrics

_MOST_KEPT = 2**30  # bytes of kept sessions where no limit is given


def open_cache(engine: Engine, folder: Path | None) -> PrefixCache:
    """A cache of what the engine's max_memory leaves to texts, to which this also limits the engine's context.

    `folder`: where sessions are kept when the server ends; UsageError if it is not fit for that.
    """
    total = engine.text_bytes
    if total is not None:
        engine.context = longest_text(engine, total)
        longest = engine.config.max_position_embeddings
        if engine.context < longest:
            tell(f"--max-memory has room for texts of {engine.context:,} tokens, the model could take {longest:,}")
    most = min(_MOST_KEPT, _physical_bytes() // 8) if total is None else total
    sessions = None if folder is None else SessionFolder(folder, engine)
    return PrefixCache(engine, most=most, total=total, folder=sessions)


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
