"""Runs a model's own chat template in a process with limits on memory and time (see `sandbox`)."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mobilemoe.chat.sandbox import CPU_SECONDS, write_frame
from mobilemoe.errors import TokenizerError

_SCRIPT = Path(__file__).with_name("sandbox.py")
_WAIT_SECONDS = 30.0  # of wall time, generous because the machine may be busy; the limit that matters is CPU_SECONDS


class ChildRenderer:
    """`sandbox.Renderer` in another process, which is started when it is needed. Safe to share between threads.

    Raises TokenizerError if the template fails, refuses the messages or exceeds a limit.
    """

    def __init__(self, source: str) -> None:
        """Compiles `source`."""
        self._source = source
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        with self._lock:
            self.marks_generation = self._start()

    def render(self, names: Mapping[str, Any], unset: Sequence[str], marks: tuple[str, str] = ("", "")) -> str:
        request = {"names": dict(names), "unset": list(unset), "marks": marks}
        with self._lock:
            if self._process is None or self._owner != os.getpid():  # a fork has the parent's pipes, not its own
                self._start()
            return str(self._ask(request, "refused these messages"))

    def _start(self) -> bool:
        """Starts the process. Returns whether the template marks what the assistant writes."""
        path = os.pathsep.join(entry for entry in sys.path if entry)
        try:
            process = subprocess.Popen(
                [sys.executable, "-S", "-P", str(_SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is meant for the run, which may still need prompts to finish
            )
        except OSError as fault:
            raise TokenizerError(f"no process for the chat template can be started: {fault.strerror}") from None
        self._process, self._owner = process, os.getpid()
        weakref.finalize(self, _stop, process, self._owner)
        return bool(self._ask({"source": self._source}, "is not valid Jinja"))

    def _ask(self, request: dict[str, Any], fails: str) -> Any:
        assert self._process is not None
        process, self._process = self._process, None  # not usable again until it has answered
        try:
            answer = _exchange(process, request)
        except BaseException as fault:
            status = _stop(process, self._owner)
            if not isinstance(fault, OSError | EOFError):
                raise
            raise TokenizerError(f"the chat template {fails}: {_death(fault, status)}") from None
        self._process = process
        if "fault" in answer:
            raise TokenizerError(f"the chat template {fails}: {answer['fault']}")
        return answer["result"]


def _exchange(process: subprocess.Popen[bytes], request: dict[str, Any]) -> Any:
    """The answer to `request`. Raises OSError (TimeoutError included) or EOFError if none comes."""
    assert process.stdin is not None
    assert process.stdout is not None
    write_frame(process.stdin, request)
    pipe, until = process.stdout.fileno(), time.monotonic() + _WAIT_SECONDS
    size = int.from_bytes(_read(pipe, 8, until), "little")
    return json.loads(_read(pipe, size, until).decode(errors="surrogatepass"))


def _read(pipe: int, size: int, until: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        ready, _, _ = select.select([pipe], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            raise TimeoutError
        piece = os.read(pipe, min(size - len(data), 2**20))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def _stop(process: subprocess.Popen[bytes], owner: int) -> int | None:
    """Ends the process and returns how it ended; None in a fork, because the parent still needs the process."""
    if owner != os.getpid():
        return None
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    with suppress(subprocess.TimeoutExpired):
        return process.wait(0.05)  # it is ending already, and its status says why
    process.kill()
    return process.wait()


def _death(fault: Exception, status: int | None) -> str:
    if isinstance(fault, TimeoutError) or status in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"it takes more than {CPU_SECONDS} s of computing"
    return f"its process ended ({status})"
