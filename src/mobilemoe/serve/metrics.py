"""What the server counts and times, for Prometheus: `GET /metrics`."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mobilemoe.engine import Drafts

_FIRST_TOKEN = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)  # seconds, the bounds of the histogram
_NEXT_TOKEN = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3)


class Metrics:
    """The numbers of one server, in a registry of its own; those of the process itself are among them."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "mobilemoe_requests", "Requests answered, by route and status", ["route", "status"], registry=registry
        )
        self._prompt = Counter("mobilemoe_prompt_tokens", "Tokens of the prompts that joined", registry=registry)
        self._generated = Counter("mobilemoe_generated_tokens", "Tokens written", registry=registry)
        self._first = Histogram(
            "mobilemoe_time_to_first_token_seconds",
            "From a request's arrival to the first token of each of its texts",
            buckets=_FIRST_TOKEN,
            registry=registry,
        )
        self._next = Histogram(
            "mobilemoe_time_per_token_seconds",
            "From one token of a text to its next",
            buckets=_NEXT_TOKEN,
            registry=registry,
        )

    def watch(self, name: str, meaning: str, read: Callable[[], float], kind: Literal["gauge", "counter"]) -> None:
        """Shows one more number, which `read` gives whenever the metrics are asked for; from any thread."""
        self._registry.register(_Watched(name, meaning, read, kind))

    def watch_drafts(self, read: Callable[[], Drafts]) -> None:
        """Shows what becomes of guessed tokens."""
        self.watch("mobilemoe_draft_passes", "Passes of a text with guesses in them", lambda: read().passes, "counter")
        self.watch("mobilemoe_draft_tokens", "Tokens guessed in them", lambda: read().proposed, "counter")
        self.watch("mobilemoe_draft_hits", "Guesses that were right", lambda: read().accepted, "counter")

    def answered(self, route: str, status: int) -> None:
        self._requests.labels(route, str(status)).inc()

    def joined(self, prompt_tokens: int) -> None:
        self._prompt.inc(prompt_tokens)

    def token(self, seconds: float, *, first: bool) -> None:
        """One more token of a text, `seconds` after its last one or after its request arrived."""
        self._generated.inc()
        (self._first if first else self._next).observe(seconds)

    def text(self) -> bytes:
        """All numbers, in the text format of Prometheus."""
        return generate_latest(self._registry)


class _Watched(Collector):
    def __init__(self, name: str, meaning: str, read: Callable[[], float], kind: Literal["gauge", "counter"]) -> None:
        self._family = GaugeMetricFamily if kind == "gauge" else CounterMetricFamily
        self._name, self._meaning, self._read = name, meaning, read

    def collect(self) -> Iterator[Metric]:
        yield self._family(self._name, self._meaning, value=self._read())

    def describe(self) -> Iterator[Metric]:
        """So that registering it does not read it: its source may not be there yet."""
        yield self._family(self._name, self._meaning)


class Counted:
    """Counts the answers of `app` by route and status, and gives each an id in the headers that clients read.

    A path that no route has counts as "other", so that strangers cannot fill the memory with names.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity = f"req_{secrets.token_hex(12)}"

        def count(status: int) -> None:
            self._metrics.answered(getattr(scope.get("route"), "path", "other"), status)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = headers["request-id"] = identity  # as OpenAI and as Anthropic name it
                count(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except Exception:  # answered further out
            count(500)
            raise
