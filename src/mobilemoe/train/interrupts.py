"""Ctrl-C, SIGTERM and the end of a terminal (SIGHUP) as a request to stop, so that the step under way is saved."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class StopRequest:
    """Whether the process has been asked to stop: `made` is set once and for all."""

    def __init__(self) -> None:
        self.made = False


@contextmanager
def handled(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Gives SIGINT, SIGTERM and SIGHUP to `handler`, and their own handlers back at the end.

    A SIGHUP that is ignored, as under nohup, stays ignored.
    """
    kinds = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        kinds.append(signal.SIGHUP)
    before = [signal.signal(kind, handler) for kind in kinds]
    try:
        yield
    finally:
        for kind, own in zip(kinds, before, strict=True):
            signal.signal(kind, own)


@contextmanager
def interrupts(insistent: bool) -> Iterator[StopRequest]:
    """Takes the signals of `handled` as a request to stop.

    If `insistent`, a second signal raises KeyboardInterrupt at once. Launchers of several processes may repeat what the
    user sent once, and have their own patience.
    """
    request = StopRequest()

    def ask(number: int, _: object) -> None:
        if request.made and insistent:
            raise KeyboardInterrupt
        request.made = True

    with handled(ask):
        yield request
