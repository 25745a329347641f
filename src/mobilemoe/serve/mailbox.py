"""Hands calls from another thread to an event loop. To wake the loop costs system calls, and the engine's thread its
lock on the interpreter and a core: what comes shortly after one waking is gathered for the next."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from weakref import WeakKeyDictionary, ref

GATHER_SECONDS = 0.005  # too short to be seen in a text that appears; a small model writes five tokens in it


class Mailbox:
    """Any thread may `post` calls, which the loop makes in this order: at once, or `GATHER_SECONDS` after the calls
    before if these are no older. A call that is `urgent` does not wait, nor do those before it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = ref(loop)
        self._posted: deque[Callable[[], None]] = deque()
        self._woken = False
        self._gathering: asyncio.TimerHandle | None = None

    def post(self, call: Callable[[], None], *, urgent: bool = False) -> None:
        self._posted.append(call)
        if not self._woken and (urgent or self._gathering is None):
            self._woken = True
            if (loop := self._loop()) is not None:
                with suppress(RuntimeError):  # the loop has ended, and with it whoever waits
                    loop.call_soon_threadsafe(self._empty)

    def _empty(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
        # Before the calls are read: one that is posted meanwhile is found here or wakes the loop again.
        self._woken, self._gathering = False, None
        if self._posted:
            self._gathering = asyncio.get_running_loop().call_later(GATHER_SECONDS, self._empty)
        while self._posted:
            self._posted.popleft()()


_mailboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, Mailbox] = WeakKeyDictionary()


def mailbox() -> Mailbox:
    """That of the running loop."""
    loop = asyncio.get_running_loop()
    return _mailboxes.setdefault(loop, Mailbox(loop))
