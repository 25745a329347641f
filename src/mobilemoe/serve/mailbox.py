"""From the scheduler's thread to an event loop. To wake the loop costs a system call, and the thread's lock on the
interpreter: what several texts get in one step, or while the loop is busy, comes in at one waking."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from weakref import WeakKeyDictionary, ref


class Mailbox:
    """Any thread may `post` calls, which the loop makes in this order."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = ref(loop)
        self._posted: deque[Callable[[], None]] = deque()
        self._woken = False

    def post(self, call: Callable[[], None]) -> None:
        self._posted.append(call)
        if not self._woken:
            self._woken = True
            if (loop := self._loop()) is not None:
                with suppress(RuntimeError):  # the loop has ended, and with it whoever waits
                    loop.call_soon_threadsafe(self._empty)

    def _empty(self) -> None:
        self._woken = False  # before it is read: what is posted meanwhile is found here or wakes the loop again
        while self._posted:
            self._posted.popleft()()


_mailboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, Mailbox] = WeakKeyDictionary()


def mailbox() -> Mailbox:
    """That of the running loop."""
    loop = asyncio.get_running_loop()
    return _mailboxes.setdefault(loop, Mailbox(loop))
