"""An exception in one of several processes ends all of them, within seconds and with the message of the failed one.

The others may be waiting for it in a collective operation that never completes. So each process has a thread that looks
for a failure in the store through which the processes found each other, and that ends the process whatever its other
threads are waiting for. Where even this thread cannot run, the process that failed ends the other one.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist

from mobilemoe.errors import MobileMoEError, TrainError

LOOK = 0.5  # seconds between two looks
GRACE = 3.0  # seconds that a process has to end by itself, once another has failed
_FAULT, _KNOWN, _PLACE = "mobilemoe/fault", "mobilemoe/known", "mobilemoe/place"
_GONE = "the first process has gone"


@contextmanager
def stop_all_on_failure(rank: int, size: int) -> Iterator[None]:
    """An exception raised inside is reported to the other processes, which then end too.

    Raises TrainError with the message of the process that failed first: where the exception here is only a consequence
    of another's, or where no sentence says yet what happened (then its traceback is printed before). The communicators
    are left as they are, since closing them would wait for the others: the caller has to end the process, as
    `mobilemoe` does at once.
    """
    watch = _Watch(rank)
    watch.start()
    try:
        yield
    except BaseException as fault:
        known = isinstance(fault, MobileMoEError)
        # An error of torch may be the consequence of a failure that another process is about to report.
        time.sleep(0 if known else LOOK)
        watch.over.set()  # this process ends by its exception: the thread need not end it
        ours = f"process {rank} stopped the training: " + (str(fault) if known else f"{type(fault).__name__}: {fault}")
        told = watch.told or watch.report(ours)
        watch.end_all(size)
        if known or (told is None and not isinstance(fault, Exception)):
            raise
        if told is None:
            traceback.print_exc()
        raise TrainError(told or ours) from None
    watch.over.set()


class _Watch(threading.Thread):
    """Ends this process some seconds after another has failed, unless it is `over` before.

    `told` is the message of the first process that failed.
    """

    def __init__(self, rank: int) -> None:
        super().__init__(name="rank-failure", daemon=True)
        self.over = threading.Event()
        self.told: str | None = None
        # A connection of its own; its type stubs are incomplete.
        self._rank = rank
        store: Any = dist.distributed_c10d._get_default_store()
        self._store = store.clone()
        self._store.set(f"{_PLACE}/{rank}", f"{_machine()} {os.getpid()}")

    def run(self) -> None:
        while self.told is None and not self.over.wait(LOOK):
            self.told = self._look()
        if self.told is None:
            return
        self._acknowledge()
        if not self.over.wait(GRACE):
            print(f"mobilemoe: {self.told}", file=sys.stderr, flush=True)
            os._exit(1)  # nothing else ends a thread that waits in a collective operation

    def report(self, ours: str) -> str | None:
        """Tells the others of a failure in this process; the message of another, if one has failed before."""
        try:
            first = self._store.compare_set(_FAULT, "", ours).decode()
        except dist.DistError:
            first = _GONE
        return None if first == ours else first

    def end_all(self, size: int) -> None:
        """Waits until all processes know of the failure, because the store ends with the process that hosts it.

        Those on this machine that do not answer are killed. Their thread cannot run while a call holds the interpreter:
        so does the launch of a compiled kernel on a GPU whose queue is full, behind an exchange that never completes.
        """
        self._acknowledge()
        end = time.monotonic() + 2 * GRACE
        silent = {rank: "" for rank in range(size) if rank != self._rank}
        with suppress(dist.DistError):
            for rank in silent:
                if self._store.check([f"{_PLACE}/{rank}"]):
                    silent[rank] = self._store.get(f"{_PLACE}/{rank}").decode()
            while silent and time.monotonic() < end:
                time.sleep(LOOK / 10)
                silent = {rank: at for rank, at in silent.items() if not self._store.check([f"{_KNOWN}/{rank}"])}
        if silent:  # also where the store has gone: they see that, and end by themselves
            time.sleep(max(0.0, end - time.monotonic()))
        for machine, _, process in (at.rpartition(" ") for at in silent.values()):
            if machine and machine == _machine():
                with suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)

    def _acknowledge(self) -> None:
        with suppress(dist.DistError):
            self._store.set(f"{_KNOWN}/{self._rank}", "")

    def _look(self) -> str | None:
        try:
            return self._store.get(_FAULT).decode() if self._store.check([_FAULT]) else None
        except dist.DistError:
            return _GONE


def _machine() -> str:
    """The machine, and the container in which the numbers of its processes hold; "" where that is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
