"""The server's process: its port, its signals, and its end once every request is answered."""

from __future__ import annotations

import logging
import resource
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from mobilemoe.errors import UsageError
from mobilemoe.load import Model
from mobilemoe.serve.app import create_app
from mobilemoe.serve.connection import IDLE_SECONDS, MAX_CONNECTIONS, MAX_HEAD_BYTES, Connection
from mobilemoe.serve.errors import readable
from mobilemoe.serve.guard import is_loopback
from mobilemoe.serve.scheduler import Scheduler

_BACKLOG = 128  # connections that the system keeps until they are looked at
_FILES = MAX_CONNECTIONS + _BACKLOG + 256  # that may be open
# Seconds. The engine's thread gives the interpreter away while it computes, and asks for it several times in each step.
# With Python's own 5 ms a step would wait as long each time that another thread is busy: eight streams of nano then had
# 700 tokens/s, and with this 2,700.
_SWITCH = 0.0005
_LAST_BYTES = 5  # seconds in which a client has to take the rest of its answer, once all is computed


class _Lines(logging.Formatter):
    """Log lines that nobody else can forge: a traceback is indented, and what it quotes has no control characters."""

    def formatException(self, ei: Any) -> str:
        lines = "".join(traceback.format_exception(*ei)).splitlines()
        return "\n".join(f"  | {readable(line)}" for line in lines)


# Errors alone: whoever can connect could fill a log of what is no HTTP.
_LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"lines": {"()": _Lines, "format": "mobilemoe: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "lines"}},
    "loggers": {
        name: {"handlers": ["stderr"], "level": "ERROR", "propagate": False} for name in ("uvicorn", "asyncio")
    },
}


class _Server(uvicorn.Server):
    """Drains at the first SIGTERM or Ctrl-C, and ends at once at the second."""

    drain: Callable[[float], None]
    drain_seconds: float
    _signals = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals == 1:
            self.drain(self.drain_seconds)
        else:
            self.drain(0)
            self.should_exit = self.force_exit = True


def serve(
    load: Callable[[], Model],
    name: str,
    *,
    fetch: Callable[[], object],
    host: str,
    port: int,
    api_key: str | None,
    without_key: bool,
    parallel: int,
    queue: int,
    drain_seconds: float,
    request_seconds: float,
    session_dir: Path | None,
    aliases: Sequence[str],
    on_ready: Callable[[str], None],
) -> None:
    """Serves the model that `load` gives, as `name` and under `aliases`, until a signal ends the process.

    `fetch` comes first, in this thread, so that Ctrl-C can end a download. Port 0 takes any that is free. It answers
    while the model is being loaded; then `on_ready` is called, with the address and in another thread.
    UsageError for a port that cannot be had, and for a host that others can reach where there is neither a key nor
    `without_key`; what `fetch` and `load` raise.
    """
    local = is_loopback(host)
    if not local and api_key is None and not without_key:
        raise UsageError(
            f"others may reach {host}: give --api-key KEY, or --no-api-key to let everybody use this server"
        )
    fetch()
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else "it is not the name of a host"
        raise UsageError(f"port {port} of {host} cannot be used: {reason}") from None
    shown = f"[{host}]" if family == socket.AF_INET6 else host
    address = f"http://{shown}:{listening.getsockname()[1]}/v1"

    def end() -> None:
        server.should_exit = True

    scheduler = Scheduler(
        load,
        parallel=parallel,
        queue=queue,
        request_seconds=request_seconds,
        session_dir=session_dir,
        on_ready=lambda: on_ready(address),
        on_end=end,
    )
    app = create_app(scheduler, name, api_key=api_key, local_only=local, aliases=aliases)
    server = _Server(
        uvicorn.Config(
            app,
            loop="asyncio",
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=_LOGGING,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=IDLE_SECONDS,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            timeout_graceful_shutdown=_LAST_BYTES,
        )
    )
    server.drain, server.drain_seconds = scheduler.drain, drain_seconds
    _allow_files(_FILES)
    sys.setswitchinterval(_SWITCH)
    scheduler.start()
    with listening:
        server.run(sockets=[listening])
    scheduler.join(_LAST_BYTES)  # or the interpreter would end under its feet
    if scheduler.fault is not None:
        raise scheduler.fault


def _allow_files(count: int) -> None:
    """Lets the process open `count` files where the system permits it; macOS allows 256 before it is asked."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if now != resource.RLIM_INFINITY and now < count:
        wanted = count if most == resource.RLIM_INFINITY else min(count, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
