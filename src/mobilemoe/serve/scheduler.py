"""The thread that owns the engine: requests wait in a fair queue, and their texts are continued together.

Each text that runs gets one token a step. Where several requests wait, each gives one of its texts in turn, so that a
request for many does not hold up the others.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from mobilemoe.engine import Batch, Engine
from mobilemoe.errors import MobileMoEError
from mobilemoe.load import Model
from mobilemoe.sampling import Choice, Sampling
from mobilemoe.serve.errors import ApiError, later
from mobilemoe.writer import Writer


@dataclass(frozen=True)
class Text:
    """One text that a request asks for: the `index`-th of its answers."""

    index: int
    ids: list[int]
    writer: Writer
    most_tokens: int  # that are written
    sampling: Sampling
    logprobs: int | None


@dataclass(frozen=True)
class Step:
    """One more token of a text, with the characters that are now certain; `finished` with the last one."""

    index: int
    choice: Choice
    piece: str
    tokens: int  # so far
    finished: Literal["stop", "length"] | None


class Ticket:
    """A request: its texts that wait, and who is told of each step, or of the error that ended it.

    `deliver` is called from the scheduler's thread.
    """

    def __init__(self, texts: Iterable[Text], deliver: Callable[[Step | Exception], None]) -> None:
        self.waiting = deque(texts)
        self.deliver = deliver
        self.over = False  # cancelled or failed: no step of it is wanted any more


class Scheduler:
    """Loads a model in a thread of its own, then computes for at most `parallel` texts at a time.

    `queue` requests may wait beside those whose texts all run. `model` is there once `state` is "ready"; `fault` is
    what ended the thread, if something did. `on_ready` and `on_end` are called from the thread.
    """

    def __init__(
        self,
        load: Callable[[], Model],
        *,
        parallel: int,
        queue: int,
        on_ready: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self._load, self._parallel, self._most_waiting = load, parallel, queue
        self._on_ready, self._on_end = on_ready, on_end
        self._changed = threading.Condition()
        self._queue: deque[Ticket] = deque()
        self._active: dict[int, tuple[Ticket, Text]] = {}
        self._deadline: float | None = None
        self._model: Model | None = None
        self.fault: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def state(self) -> Literal["loading", "ready", "draining"]:
        if self._deadline is not None:
            return "draining"
        return "loading" if self._model is None else "ready"

    @property
    def counts(self) -> tuple[int, int]:
        """How many texts run, and how many requests wait."""
        with self._changed:
            return len(self._active), len(self._queue)

    @property
    def model(self) -> Model:
        """ApiError 503 while it is being loaded."""
        if self._model is None:
            raise later(503, "the model is being loaded", "loading")
        return self._model

    def submit(self, ticket: Ticket) -> None:
        """Puts a request into the queue. ApiError 503 while the server drains, and 429 where the queue is full."""
        with self._changed:
            self.check_open()
            self._queue.append(ticket)
            self._changed.notify()

    def check_open(self) -> None:
        """Raises as `submit` does: worth a look before work on a request begins."""
        if self._deadline is not None:
            raise later(503, "the server is about to end", "draining")
        if len(self._queue) >= self._most_waiting:
            raise later(429, f"{self._most_waiting} requests wait already", "queue_full")

    def cancel(self, ticket: Ticket) -> None:
        """Ends a request whose client has gone; its texts leave before the next step."""
        with self._changed:
            ticket.over = True
            if ticket in self._queue:
                self._queue.remove(ticket)

    def drain(self, seconds: float) -> None:
        """Takes no further requests and ends the thread once all are answered, at the latest after `seconds`.

        May be called by a signal's handler, whatever the thread it interrupts is doing.
        """
        with self._changed:
            self._deadline = min(time.monotonic() + seconds, self._deadline or math.inf)
            self._changed.notify()

    def join(self, seconds: float) -> None:
        """Waits for the thread to end, for at most `seconds`."""
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            model = self._load()
            engine = model.engine
            if engine is None:
                raise AssertionError("the server runs on the native engine")
            self._model = model
            if self._deadline is None:
                self._on_ready()
            self._work(engine)
        except Exception as fault:
            self.fault = fault
            self._fail(fault)
        finally:
            self._on_end()

    def _work(self, engine: Engine) -> None:
        batch = engine.batch()
        while self._wait():
            try:
                for number in [number for number, (ticket, _) in self._active.items() if ticket.over]:
                    del self._active[number]
                    batch.leave(number)
                for ticket, text in self._admitted():
                    self._join(engine, batch, ticket, text)
                for number, choice in batch.step() if self._active else ():
                    ticket, text = self._active[number]
                    piece = text.writer.push(choice.token)
                    if text.writer.finished:
                        del self._active[number]
                        batch.leave(number)
                    if not ticket.over:
                        ticket.deliver(Step(text.index, choice, piece, text.writer.new_tokens, text.writer.finished))
            except (MobileMoEError, MemoryError) as fault:  # of the machine or the model's file, not of a request
                print(f"mobilemoe: {fault}", file=sys.stderr)
                self._fail(ApiError(500, str(fault) or "there is not enough memory"))
                batch = engine.batch()

    def _join(self, engine: Engine, batch: Batch, ticket: Ticket, text: Text) -> None:
        """Lets a text run; its request fails if there is no memory for it."""
        if ticket.over:
            return
        try:
            session = engine.session(min(engine.context, len(text.ids) + text.most_tokens))
            number = batch.join(text.ids, text.sampling, logprobs=text.logprobs, session=session)
        except (MobileMoEError, MemoryError) as fault:
            self.cancel(ticket)
            ticket.deliver(later(503, str(fault) or "there is not enough memory for this now", "no_memory"))
        else:
            self._active[number] = (ticket, text)

    def _wait(self) -> bool:
        """Waits until there is something to compute; False once the server has drained."""
        with self._changed:
            while not self._active and not self._queue:
                if self._deadline is not None:
                    return False
                self._changed.wait()
        if self._deadline is not None and time.monotonic() > self._deadline:
            self._fail(later(503, "the server ended before this was answered", "draining"))
        return True

    def _admitted(self) -> list[tuple[Ticket, Text]]:
        """The texts that may join now: one of each request that waits, in turn."""
        found: list[tuple[Ticket, Text]] = []
        with self._changed:
            while self._queue and len(self._active) + len(found) < self._parallel:
                ticket = self._queue.popleft()
                found.append((ticket, ticket.waiting.popleft()))
                if ticket.waiting:
                    self._queue.append(ticket)
        return found

    def _fail(self, fault: Exception) -> None:
        """Ends all requests, those that wait too."""
        with self._changed:
            tickets = {ticket: None for ticket, _ in self._active.values()} | dict.fromkeys(self._queue)
            self._queue.clear()
            self._active.clear()
        for ticket in tickets:
            if not ticket.over:
                ticket.over = True
                ticket.deliver(fault)
