"""An exception in one of several processes ends all of them, within seconds and with the message of the failed one.

The others may be waiting for it in a collective operation that never completes. So each process has a thread that looks
for a failure in the store through which the processes found each other, and that ends the process whatever its other
threads are waiting for.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch.distributed as dist

from mobilemoe.errors import MobileMoEError, TrainError

LOOK = 0.5  # seconds between two looks
GRACE = 3.0  # seconds that a process has to end by itself, once another has failed
_FAULT, _KNOWN = "mobilemoe/fault", "mobilemoe/known"


@contextmanager
def stop_all_on_failure(rank: int, size: int) -> Iterator[None]:
    """An exception raised inside is reported to the other processes, which then end too.

    Raises TrainError with the message of another process where the exception here is only a consequence of its failure.
    """
    store: Any = dist.distributed_c10d._get_default_store()  # its type stubs are incomplete
    over = threading.Event()
    threading.Thread(target=_watch, args=(store.clone(), over), name="rank-failure", daemon=True).start()
    try:
        yield
    except BaseException as fault:
        # An error of torch may be the consequence of a failure that another process is about to report.
        time.sleep(0 if isinstance(fault, MobileMoEError) else LOOK)
        told = _fault(store)
        over.set()  # this process ends by its exception: the thread need not end it
        with suppress(dist.DistError):
            if told is None:
                sentence = str(fault) if isinstance(fault, MobileMoEError) else f"{type(fault).__name__}: {fault}"
                store.set(_FAULT, f"process {rank} stopped the training: {sentence}")
            store.add(_KNOWN, 1)
            _wait_until_all_know(store, size)
        if told is not None and not isinstance(fault, MobileMoEError):
            raise TrainError(told) from None
        raise
    over.set()


def _wait_until_all_know(store: Any, size: int) -> None:
    """Waits until all processes know of the failure, because the store ends with the process that hosts it."""
    end = time.monotonic() + 2 * GRACE
    while store.add(_KNOWN, 0) < size and time.monotonic() < end:
        time.sleep(LOOK / 10)


def _fault(store: Any) -> str | None:
    """The message of the first process that failed, also where the store has gone; None if none has failed."""
    try:
        return store.get(_FAULT).decode() if store.check([_FAULT]) else None
    except dist.DistError:
        return "the first process has gone"


def _watch(store: Any, over: threading.Event) -> None:
    """Ends this process some seconds after another has failed, unless it ends by itself."""
    while not over.wait(LOOK):
        if (told := _fault(store)) is None:
            continue
        if not over.wait(GRACE):
            with suppress(dist.DistError):
                store.add(_KNOWN, 1)
            print(f"mobilemoe: {told}", file=sys.stderr, flush=True)
            os._exit(1)  # nothing else ends a thread that waits in a collective operation
        return
