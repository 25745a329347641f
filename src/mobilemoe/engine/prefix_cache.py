"""Sessions of texts that have ended, kept for texts that begin in the same way, in memory and in a folder.

A new text starts from the kept session with which it shares most: from that session itself where nothing of it would be
lost, else from a copy. What was used longest ago goes first. The tokens that follow are the same as without.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from mobilemoe.engine.batch import LEAST_SHARED
from mobilemoe.engine.core import Core, Session
from mobilemoe.engine.session_folder import SessionFolder, tell
from mobilemoe.errors import CheckpointError
from mobilemoe.ids import common_prefix

LEAST_SAVED = 64  # tokens of a session that is worth a file
MOST_SAVED = 4 * 2**30  # bytes of the files in a folder


@dataclass
class PrefixStats:
    """What a prefix cache has done so far, and what it holds now."""

    texts: int = 0  # that were begun
    hits: int = 0  # of these took over a part of another text
    prompt_tokens: int = 0  # of all texts
    hit_tokens: int = 0  # of these were taken over
    evictions: int = 0  # of sessions from memory, to make room
    sessions: int = 0  # that are kept in memory
    bytes: int = 0  # of their keys and values
    running_bytes: int = 0  # that are set aside for the texts that run
    saved_sessions: int = 0  # that are kept in the folder
    saved_bytes: int = 0  # of their files


@dataclass(eq=False)
class _Kept:
    tokens: list[int]
    session: Session | None = None  # in memory
    bytes: int = 0  # of its keys and values there
    file: Path | None = None  # in the folder
    file_bytes: int = 0


@dataclass
class _Running:
    reserved: int  # bytes that it may come to fill
    filled: int = 0  # bytes that its memory has held already, also if it was cut since


def longest_text(engine: Core, total: int) -> int:
    """The most tokens of one text whose keys and values fill `total` bytes; 0 if there is no room for any."""
    return bisect_right(range(1, engine.context + 1), total, key=engine.kv_bytes)


class PrefixCache:
    """For one thread, except `stats`.

    `most` bytes are for kept sessions, `total` for these and the texts that run together. `folder` keeps what does not
    fit, and on `save` everything.
    """

    def __init__(
        self, engine: Core, *, most: int, total: int | None = None, folder: SessionFolder | None = None
    ) -> None:
        self._engine, self._most, self._total, self._folder = engine, most, total, folder
        self._now = PrefixStats()
        self._by_tokens: list[_Kept] = []  # sorted: those that share most are neighbours
        self._by_use: dict[_Kept, None] = {}  # what was used longest ago comes first
        self._running: dict[Session, _Running] = {}
        for path, size, tokens in folder.saved() if folder else ():
            if len(tokens) <= engine.context:
                self._add(_Kept(tokens, file=path, file_bytes=size))

    @property
    def stats(self) -> PrefixStats:
        """A copy, for any thread."""
        return replace(self._now)

    def open(self, ids: list[int], tokens: int) -> Session | None:
        """A session for a text that begins with `ids` and grows up to `tokens`; it may hold more than their prefix.

        None if there is no room for it until a text that runs is closed. MemoryError if the system has none.
        """
        wanted = self._engine.kv_bytes(tokens)
        source, shared = self._closest(ids)
        if source is None:
            return self._run(self._engine.session(), wanted) if self._make_room(wanted) else None
        if source.session is None:
            return self._restore(source, ids, tokens)
        self._touch(source)
        if shared < len(source.tokens) and self._make_room(wanted, spare=source):
            return self._run(source.session.fork(shared), wanted)
        wanted = max(wanted, source.bytes)
        if not self._make_room(wanted - source.bytes, spare=source):
            return None
        session, filled = source.session, source.bytes
        self._forget(source)
        return self._run(session, wanted, filled)

    def close(self, session: Session, *, keep: bool = True) -> None:
        """Ends a text. Its session is kept, unless another holds the same."""
        running = self._running.pop(session)
        self._now.running_bytes -= running.reserved
        tokens = session.tokens
        if not keep or len(tokens) < LEAST_SHARED:
            return
        at = bisect_left(self._by_tokens, tokens, key=_tokens_of)
        later = self._by_tokens[at] if at < len(self._by_tokens) else None
        if later is not None and later.session is not None and _begins(later.tokens, tokens):
            self._touch(later)
            return
        if at > 0 and _begins(tokens, self._by_tokens[at - 1].tokens):
            self._forget(self._by_tokens[at - 1])
        size = max(self._engine.kv_bytes(len(tokens)), running.filled)
        if size <= self._most and self._make_room(size, kept=True):
            self._keep(tokens, session, size)

    def count(self, prompt_tokens: int, reused: int) -> None:
        """Notes for `stats` how many tokens of a text's prompt were taken over."""
        self._now.texts += 1
        self._now.hits += reused > 0
        self._now.prompt_tokens += prompt_tokens
        self._now.hit_tokens += reused

    def save(self) -> None:
        """Writes to the folder what it does not hold yet, the latest first; what it no longer needs is removed."""
        if self._folder is None:
            return
        for kept in reversed([*self._by_use]):
            if kept.session is not None and not self._write(kept):
                break
        self._folder.note_use([kept.file for kept in self._by_use if kept.file is not None])

    def end(self) -> None:
        """Lets the folder go."""
        if self._folder is not None:
            self._folder.close()

    def _closest(self, ids: list[int]) -> tuple[_Kept | None, int]:
        """What is kept and shares most with `ids`, and how many tokens."""
        at = bisect_left(self._by_tokens, ids, key=_tokens_of)
        near = [(kept, common_prefix(kept.tokens, ids)) for kept in self._by_tokens[max(0, at - 1) : at + 1]]
        kept, shared = max(near, key=lambda each: each[1], default=(None, 0))
        return (kept, shared) if shared >= LEAST_SHARED else (None, 0)

    def _restore(self, source: _Kept, ids: list[int], tokens: int) -> Session | None:
        """As `open`, from a file: the session is a copy, the file stays."""
        if source.file is None:
            raise AssertionError("what is kept is in memory or in a file")
        filled = self._engine.kv_bytes(len(source.tokens))
        wanted = max(filled, self._engine.kv_bytes(tokens))
        if not self._make_room(wanted):
            return None
        try:
            session = self._engine.restore(source.file)
        except CheckpointError as fault:
            tell(f"{fault}: it is ignored")
            self._drop_file(source)
            return self.open(ids, tokens)
        self._touch(source)
        return self._run(session, wanted, filled)

    def _keep(self, tokens: list[int], session: Session, size: int) -> None:
        at = bisect_left(self._by_tokens, tokens, key=_tokens_of)
        kept = self._by_tokens[at] if at < len(self._by_tokens) else None
        if kept is None or kept.tokens != tokens:  # else its file holds the same
            kept = _Kept(tokens)
            self._add(kept)
        kept.session, kept.bytes = session, size
        self._now.sessions += 1
        self._now.bytes += size
        self._touch(kept)

    def _run(self, session: Session, reserved: int, filled: int = 0) -> Session:
        self._running[session] = _Running(reserved, filled)
        self._now.running_bytes += reserved
        return session

    def _make_room(self, size: int, *, spare: _Kept | None = None, kept: bool = False) -> bool:
        """Whether there is room for `size` bytes more, which are `kept` or for a text that runs.

        Sessions are evicted for it, but never `spare`, and none if that would not be enough.
        """

        def lacking() -> int:
            of_total = 0 if self._total is None else self._now.bytes + self._now.running_bytes + size - self._total
            return max(of_total, self._now.bytes + size - self._most if kept else 0)

        if lacking() > self._now.bytes - (0 if spare is None else spare.bytes):
            return False
        while lacking() > 0:
            self._evict(next(each for each in self._by_use if each.session is not None and each is not spare))
        return True

    def _evict(self, kept: _Kept) -> None:
        self._now.evictions += 1
        self._write(kept)
        self._forget(kept)

    def _forget(self, kept: _Kept) -> None:
        """Lets the session in memory go, not the file."""
        if kept.session is not None:
            kept.session = None
            self._now.sessions -= 1
            self._now.bytes -= kept.bytes
            kept.bytes = 0
        self._remove_if_empty(kept)

    def _write(self, kept: _Kept) -> bool:
        """Writes a session to the folder, unless it is there or too short; False if that failed."""
        if self._folder is None or kept.session is None or kept.file is not None or len(kept.tokens) < LEAST_SAVED:
            return True
        at = self._place(kept)
        later = self._by_tokens[at + 1] if at + 1 < len(self._by_tokens) else None
        if later is not None and later.file is not None and _begins(later.tokens, kept.tokens):
            return True
        try:
            kept.file = self._folder.save(kept.session)
            kept.file_bytes = kept.file.stat().st_size
        except (CheckpointError, OSError) as fault:
            tell(str(fault))
            return False
        self._now.saved_sessions += 1
        self._now.saved_bytes += kept.file_bytes
        if at > 0 and _begins(kept.tokens, self._by_tokens[at - 1].tokens):
            self._drop_file(self._by_tokens[at - 1], remove=True)  # an earlier state of the same text
        while self._now.saved_bytes > MOST_SAVED:
            self._drop_file(next(each for each in self._by_use if each.file is not None), remove=True)
        return True

    def _drop_file(self, kept: _Kept, *, remove: bool = False) -> None:
        if kept.file is not None:
            if remove:
                with suppress(OSError):
                    kept.file.unlink()
            kept.file = None
            self._now.saved_sessions -= 1
            self._now.saved_bytes -= kept.file_bytes
        self._remove_if_empty(kept)

    def _add(self, kept: _Kept) -> None:
        self._by_tokens.insert(bisect_left(self._by_tokens, kept.tokens, key=_tokens_of), kept)
        self._by_use[kept] = None
        if kept.file is not None:
            self._now.saved_sessions += 1
            self._now.saved_bytes += kept.file_bytes

    def _remove_if_empty(self, kept: _Kept) -> None:
        if kept.session is None and kept.file is None and kept in self._by_use:
            del self._by_tokens[self._place(kept)]
            del self._by_use[kept]

    def _place(self, kept: _Kept) -> int:
        at = bisect_left(self._by_tokens, kept.tokens, key=_tokens_of)
        while self._by_tokens[at] is not kept:  # files of two processes may hold the same tokens
            at += 1
        return at

    def _touch(self, kept: _Kept) -> None:
        """Notes that this was used last."""
        del self._by_use[kept]
        self._by_use[kept] = None


def _tokens_of(kept: _Kept) -> list[int]:
    return kept.tokens


def _begins(tokens: list[int], prefix: list[int]) -> bool:
    return tokens[: len(prefix)] == prefix
