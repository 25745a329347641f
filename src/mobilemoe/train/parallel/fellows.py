"""An exception in one of several processes ends all of them: within seconds, and with that process's sentence.

The others may wait for it in an exchange that never comes. So each has a thread that looks for a fault in the store
through which the processes found each other, and ends its process whatever the rest of it waits for.
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
GRACE = 3.0  # seconds that a process has to end in its own way, once another has failed
_FAULT, _HEARD = "mobilemoe/fault", "mobilemoe/heard"


@contextmanager
def ending_together(rank: int, size: int) -> Iterator[None]:
    """What is raised inside is told to the other processes, which end too. TrainError with a fellow's sentence where
    what is raised here only follows from that."""
    store: Any = dist.distributed_c10d._get_default_store()  # whose stubs lack half of it
    over = threading.Event()
    threading.Thread(target=_listen, args=(store.clone(), over), name="fellows", daemon=True).start()
    try:
        yield
    except BaseException as fault:
        time.sleep(0 if isinstance(fault, MobileMoEError) else LOOK)  # which may follow from a fellow's, not yet told
        told = _fault(store)
        over.set()  # this process ends by itself
        with suppress(dist.DistError):
            if told is None:
                sentence = str(fault) if isinstance(fault, MobileMoEError) else f"{type(fault).__name__}: {fault}"
                store.set(_FAULT, f"process {rank} stopped the training: {sentence}")
            store.add(_HEARD, 1)
            _see_others_off(store, size)
        if told is not None and not isinstance(fault, MobileMoEError):
            raise TrainError(told) from None
        raise
    over.set()


def _see_others_off(store: Any, size: int) -> None:
    """Waits until all have heard of the fault: one of the processes is the store."""
    end = time.monotonic() + 2 * GRACE
    while store.add(_HEARD, 0) < size and time.monotonic() < end:
        time.sleep(LOOK / 10)


def _fault(store: Any) -> str | None:
    """The sentence of the first process that failed, or that none can be asked any more."""
    try:
        return store.get(_FAULT).decode() if store.check([_FAULT]) else None
    except dist.DistError:
        return "the first process has gone"


def _listen(store: Any, over: threading.Event) -> None:
    """Ends this process some seconds after another has failed, unless it ends by itself."""
    while not over.wait(LOOK):
        if (told := _fault(store)) is None:
            continue
        if not over.wait(GRACE):
            with suppress(dist.DistError):
                store.add(_HEARD, 1)
            print(f"mobilemoe: {told}", file=sys.stderr, flush=True)
            os._exit(1)  # nothing else ends a thread that waits in an exchange
        return
