"""The thread that owns the engine: requests wait in a fair queue, and their texts are continued together.

Each text that runs gets one token a step. Where several requests wait, each gives one of its texts in turn, so that a
request for many does not hold up the others. A text waits, and those behind it, until there is memory for it.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mobilemoe.engine import Batch, Drafts, Engine, Session
from mobilemoe.engine.guides import Guide
from mobilemoe.engine.prefix_cache import PrefixCache, PrefixStats
from mobilemoe.errors import MobileMoEError
from mobilemoe.load import Model
from mobilemoe.sampling import Choice, Sampling
from mobilemoe.serve.errors import ApiError, as_api_error, failed, later
from mobilemoe.serve.memory import open_cache
from mobilemoe.serve.memory import watch as watch_memory
from mobilemoe.serve.metrics import Metrics
from mobilemoe.serve.pace import Pace
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
    guide: Guide | None = None
    experts: bool = False  # are told of each token


@dataclass(frozen=True)
class Step:
    """One more token of a text, with the characters that are now certain; `finished` with the last one."""

    index: int
    choice: Choice
    piece: str
    tokens: int  # so far
    finished: Literal["stop", "length"] | None
    reused: int = 0  # tokens of the prompt that were not computed for this text
    stop_text: str | None = None  # which of the stop texts ended it, if one did


class Ticket:
    """A request: its texts that wait, and who is told of each step, or of the error that ended it.

    `deliver` is called from the scheduler's thread.
    """

    def __init__(self, texts: Iterable[Text], deliver: Callable[[Step | Exception], None]) -> None:
        self.waiting = deque(texts)
        self.deliver = deliver
        self.arrived = time.monotonic()
        self.over = False  # cancelled or failed: no step of it is wanted any more


@dataclass
class _Running:
    """A text that has a place, since when, and when its last token came."""

    ticket: Ticket
    text: Text
    session: Session
    since: float = field(default_factory=time.monotonic)
    last: float | None = None


class Scheduler:
    """Loads a model in a thread of its own, then computes for at most `parallel` texts at a time.

    `queue` requests may wait beside those whose texts all run; one that is not answered after `request_seconds` ends
    with an error. Texts that are kept outlive it in `session_dir`. `model` is there once `state` is "ready"; `fault` is
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
        request_seconds: float = math.inf,
        session_dir: Path | None = None,
    ) -> None:
        self._load, self._parallel, self._most_waiting = load, parallel, queue
        self.request_seconds, self._session_dir = request_seconds, session_dir
        self._on_ready, self._on_end = on_ready, on_end
        self._changed = threading.Condition()
        self._queue: deque[Ticket] = deque()
        self._active: dict[int, _Running] = {}
        self._pace, self._began = Pace(), time.monotonic()
        self._deadline: float | None = None
        self._model: Model | None = None
        self._prefixes: PrefixCache | None = None
        self.fault: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.metrics = Metrics()
        self.metrics.watch("mobilemoe_running_texts", "Texts that are computed", lambda: self.counts[0], "gauge")
        self.metrics.watch("mobilemoe_waiting_requests", "Requests that wait", lambda: self.counts[1], "gauge")
        watch_memory(self.metrics, lambda: self.prefix_stats)
        self.metrics.watch_drafts(lambda: self.drafts)

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
    def prefix_stats(self) -> PrefixStats:
        """What was reused so far, and what is kept."""
        return PrefixStats() if self._prefixes is None else self._prefixes.stats

    @property
    def drafts(self) -> Drafts:
        """What became of the tokens that were guessed so far."""
        engine = None if self._model is None else self._model.engine
        return Drafts(0, 0, 0) if engine is None else engine.drafts

    @property
    def model(self) -> Model:
        """ApiError 503 while it is being loaded."""
        if self._model is None:
            # Nobody knows how long it takes: as long again is the best guess for most durations.
            raise later(503, "the model is being loaded", "loading", time.monotonic() - self._began)
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
            raise later(503, "the server is about to end", "draining", self._deadline - time.monotonic())
        if len(self._queue) >= self._most_waiting:
            raise later(429, f"{self._most_waiting} requests wait already", "queue_full", self._seconds_until_room())

    def _seconds_until_room(self) -> float:
        """Estimates the time until the queue has room."""
        with self._changed:
            now = time.monotonic()
            ages = [now - running.since for running in self._active.values()]
            return self._pace.seconds_until([len(each.waiting) for each in self._queue], ages, self._parallel)

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
            self._prefixes = prefixes = open_cache(engine, self._session_dir)
            self._model = model
            if self._deadline is None:
                self._on_ready()
            self._work(engine, prefixes)
            prefixes.save()
        except Exception as fault:
            self.fault = fault
            self._fail(fault)
        finally:
            if self._prefixes is not None:
                self._prefixes.end()
            self._on_end()

    def _work(self, engine: Engine, prefixes: PrefixCache) -> None:
        batch = engine.batch()
        while self._wait():
            try:
                self._end_late()
                for number in [number for number, running in self._active.items() if running.ticket.over]:
                    self._leave(batch, prefixes, number)
                self._admit(engine, batch, prefixes)
                results = batch.attempt() if self._active else []
                now = time.monotonic()
                for number, result in results:
                    self._take(batch, prefixes, number, result, now)
            except (MobileMoEError, MemoryError) as fault:  # of the machine or the model's file, not of a request
                self._fail(failed(fault))
                batch = engine.batch()

    def _take(self, batch: Batch, prefixes: PrefixCache, number: int, result: Choice | Exception, now: float) -> None:
        """Hands on a text's next token, which was computed `now`; its fault ends its own request."""
        running = self._active[number]
        ticket, text, writer = running.ticket, running.text, running.text.writer
        if isinstance(result, Exception):
            self._leave(batch, prefixes, number)
            self._end(ticket, as_api_error(result))
            return
        piece = writer.push(result.token)
        reused = batch.reused(number)
        if running.last is None:
            prefixes.count(len(text.ids), reused)
        self.metrics.token(now - (running.last or ticket.arrived), first=running.last is None)
        running.last = now
        if writer.finished:
            self._leave(batch, prefixes, number)
        if not ticket.over:
            step = Step(text.index, result, piece, writer.new_tokens, writer.finished, reused, writer.stop_text)
            ticket.deliver(step)

    def _leave(self, batch: Batch, prefixes: PrefixCache, number: int) -> None:
        with self._changed:
            running = self._active.pop(number)
            self._pace.ended(time.monotonic() - running.since)
        batch.leave(number)
        prefixes.close(running.session)

    def _end(self, ticket: Ticket, fault: Exception) -> None:
        """Ends a request with an error, unless it has ended before."""
        if not ticket.over:
            self.cancel(ticket)
            ticket.deliver(fault)

    def _end_late(self) -> None:
        """Ends the requests whose time is over, whether they run or wait."""
        if self.request_seconds == math.inf:
            return
        oldest = time.monotonic() - self.request_seconds
        with self._changed:
            tickets = [*(running.ticket for running in self._active.values()), *self._queue]
        for ticket in tickets:
            if ticket.arrived < oldest:
                self._end(ticket, too_late(self.request_seconds))

    def _admit(self, engine: Engine, batch: Batch, prefixes: PrefixCache) -> None:
        """Lets texts join while there is room for them: one of each request that waits, in turn."""
        while True:
            with self._changed:
                if not self._queue or len(self._active) >= self._parallel:
                    return
                ticket = self._queue[0]
                text = ticket.waiting[0]
            if not self._join(engine, batch, prefixes, ticket, text):
                return
            with self._changed:
                if self._queue and self._queue[0] is ticket:  # it has not been cancelled meanwhile
                    ticket.waiting.popleft()
                    self._queue.popleft()
                    if ticket.waiting:
                        self._queue.append(ticket)

    def _join(self, engine: Engine, batch: Batch, prefixes: PrefixCache, ticket: Ticket, text: Text) -> bool:
        """Lets a text run; its request fails if the system has no memory. False: it has to wait for another's end."""
        session = None
        try:
            session = prefixes.open(text.ids, min(engine.context, len(text.ids) + text.most_tokens))
            if session is None:
                return False
            number = batch.join(
                text.ids,
                text.sampling,
                logprobs=text.logprobs,
                experts=text.experts,
                session=session,
                guide=text.guide,
            )
        except (MobileMoEError, MemoryError) as fault:
            if session is not None:
                prefixes.close(session, keep=False)
            seconds = self._seconds_until_room()
            self._end(ticket, later(503, str(fault) or "there is not enough memory for this now", "no_memory", seconds))
        else:
            with self._changed:
                self._active[number] = _Running(ticket, text, session)
            self.metrics.joined(len(text.ids))
        return True

    def _wait(self) -> bool:
        """Waits until there is something to compute; False once the server has drained."""
        with self._changed:
            while not self._active and not self._queue:
                if self._deadline is not None:
                    return False
                self._changed.wait()
        if self._deadline is not None and time.monotonic() > self._deadline:
            self._fail(later(503, "the server ended before this was answered", "draining", 1))
        return True

    def _fail(self, fault: Exception) -> None:
        """Ends all requests, those that wait too."""
        with self._changed:
            ended = [*self._active.values()]
            tickets = {running.ticket: None for running in ended} | dict.fromkeys(self._queue)
            self._queue.clear()
            self._active.clear()
        if self._prefixes is not None:
            for running in ended:
                self._prefixes.close(running.session, keep=False)
        for ticket in tickets:
            if not ticket.over:
                ticket.over = True
                ticket.deliver(fault)


def too_late(seconds: float) -> ApiError:
    """Whoever sent the request should not send it again as it is: it would take as long."""
    return ApiError(
        504,
        f"the answer was not complete after {seconds:g} seconds, this server's limit: ask for fewer tokens",
        code="deadline_exceeded",
        headers={"x-should-retry": "false"},
    )
