"""Makes batches in a thread while the device computes. The state is that after the last batch that was returned."""

from __future__ import annotations

import queue
import threading
from contextlib import suppress
from typing import Any

from mobilemoe.data.loader import Batch, LeftOut, PackedLoader

DEPTH = 2  # batches ready at most


class Prefetcher:
    """Iterator over the batches of `loader`, which belongs to it from the first batch to `close`.

    A fault of the loader is raised where its batch is asked for, after the batches before it.
    """

    def __init__(self, loader: PackedLoader) -> None:
        self._loader = loader
        self._ready: queue.Queue[tuple[Batch, dict[str, Any]] | BaseException] = queue.Queue(DEPTH)
        self._state: dict[str, Any] | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._next: tuple[Batch, dict[str, Any]] | BaseException | None = None

    def __iter__(self) -> Prefetcher:
        return self

    def __next__(self) -> Batch:
        if (fault := self.fault()) is not None:
            raise fault
        assert isinstance(self._next, tuple)  # what is no fault
        (batch, self._state), self._next = self._next, None
        return batch

    def fault(self) -> BaseException | None:
        """Waits for the next batch, and gives the fault that comes in its place, if one does; it stays the next."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
            self._thread.start()
        if self._next is None:
            self._next = self._ready.get()
        return self._next if isinstance(self._next, BaseException) else None

    def state_dict(self) -> dict[str, Any]:
        """`PackedLoader.state_dict` as it was when the last batch had been made."""
        return self._loader.state_dict() if self._state is None else self._state

    @property
    def left_out(self) -> LeftOut:
        """`PackedLoader.left_out`, up to the last batch handed out."""
        return LeftOut(*self.state_dict()["left_out"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state`, whichever batches were given out before."""
        self.close()
        self._stopping.clear()
        self._ready = queue.Queue(DEPTH)
        self._thread = self._state = self._next = None
        self._loader.load_state_dict(state)

    def close(self) -> None:
        """Ends the thread; batches that were not taken are dropped."""
        self._stopping.set()
        if self._thread is not None:
            while self._thread.is_alive():
                with suppress(queue.Empty):  # it may wait for room
                    self._ready.get_nowait()
                self._thread.join(timeout=0.01)

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                batch = next(self._loader)
                self._ready.put((batch, self._loader.state_dict()))
            except BaseException as fault:  # raised where the batches are taken, which would else wait forever
                self._ready.put(fault)
                return
