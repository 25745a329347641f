"""Runs code that a model wrote, in isolation: no network, no files but its own, limits on all resources.

The isolation uses Linux namespaces (see inside.py): the network has no device, and the program sees an empty folder in
memory (64 MiB, gone afterwards), the interpreter's own files, read-only (files.py), and no process but its own,
16 at most, which all end with it. Of system calls it has only what programs need (calls.py): sockets of this
machine's kind alone, no keys, no memory that no limit counts. All this needs a kernel that lets this user create
user namespaces; otherwise no code is run. One thing is not prevented: code that searches the interpreter's own frames
for the token of `run_code` can claim to have passed its tests. It still cannot leave the sandbox.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import selectors
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from mobilemoe.errors import MobileMoEError, UsageError
from mobilemoe.evaluate.tasks.sandbox import inside
from mobilemoe.evaluate.tasks.sandbox.calls import calls_of
from mobilemoe.evaluate.tasks.sandbox.files import visible_files

MAX_OUTPUT_BYTES = 64 * 2**10
_MAX_SECONDS, _MAX_MEMORY = 86_400, 2**46  # a day, and more than any machine has
STRENGTH = (
    "Linux namespaces and a closed list of system calls: no network, an empty folder in memory for files and the "
    "interpreter's own beside it, read-only, no sight of other processes; limits on seconds, memory, output, files and "
    "processes"
)
# The sandbox is tested with these programs before it is trusted; each must end as stated.
_TRIALS = {
    "import collections, functools, hashlib, heapq, itertools, json, math, random, re, socket, string, typing\n"
    "import threading\n"
    "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    "with open('kept', 'w') as file: file.write('x' * 2**16)\n"
    "assert len(open('kept').read()) == 2**16\n"
    "try: socket.socket(socket.AF_INET)\n"
    "except OSError: pass\n"
    "else: raise SystemExit('it can open a network socket')": None,
    "assert 1 + 1 == 3": "error",
}

Failure = Literal["error", "time", "output"]


class SandboxError(MobileMoEError):
    """This machine cannot isolate code, so none is run."""


@dataclass(frozen=True)
class Outcome:
    """How a program ended: `failure` is None if it came to its end, past its last test; `output` is what it printed."""

    failure: Failure | None
    output: str
    seconds: float

    @property
    def passed(self) -> bool:
        return self.failure is None


def run_code(program: str, *, seconds: float, memory_bytes: int) -> Outcome:
    """Runs the Python text `program`, tests at its end, in a new interpreter in isolation.

    `seconds` are of wall-clock, `memory_bytes` of address space of each of its processes with the 64 MiB that its
    folder may take. A failed test, an exception, any exit before the end and a signal are all "error"; more than 64 KiB
    of output is "output".
    Raises SandboxError if the isolation cannot be set up, and UsageError for limits that are none.
    """
    if not (0 < seconds <= _MAX_SECONDS and 0 < memory_bytes <= _MAX_MEMORY):
        raise UsageError(
            f"{seconds} s and {memory_bytes} bytes are no limits for a program: they must be above 0, and at "
            f"most {_MAX_SECONDS:,} s and {_MAX_MEMORY:,} bytes"
        )
    calls = calls_of(platform.machine())
    if sys.platform != "linux" or calls is None:
        here = sys.platform if sys.platform != "linux" else platform.machine()
        raise SandboxError(f"generated code runs only in a sandbox of Linux namespaces, which {here} lacks")
    token = secrets.token_hex(16)
    python = os.path.realpath(sys.executable)
    command = [python, "-I", "-S", "-B", str(Path(inside.__file__).resolve())]
    try:
        job = {
            "token": token,
            "program": program,
            "seconds": seconds,
            "memory_bytes": memory_bytes,
            "python": python,
            "visible": asdict(visible_files(python)),
            "filter": calls.filter.hex(),
            "keyctl": calls.keyctl,
        }
        pipe, began = subprocess.PIPE, time.monotonic()
        with subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, env={}, cwd="/", start_new_session=True
        ) as launcher:
            try:
                assert launcher.stdin is not None
                with suppress(BrokenPipeError), launcher.stdin:  # one that failed says why itself
                    launcher.stdin.write(json.dumps(job).encode())
                output, verdict, failure = _read_both(launcher, began + seconds)
            finally:
                launcher.kill()  # and the kernel everything below it
    except OSError as fault:
        raise SandboxError(_refusal(str(fault))) from None
    if launcher.returncode not in (0, -signal.SIGKILL):
        raise SandboxError(_refusal(verdict.decode(errors="replace").strip()))
    if failure is None and verdict != token.encode():
        failure = "error"
    return Outcome(failure, output.decode(errors="replace"), time.monotonic() - began)


@cache
def sandbox_strength() -> str:
    """The protections in force, in words. Raises SandboxError, with the remedy, if code cannot be isolated."""
    for program, failure in _TRIALS.items():
        outcome = run_code(program, seconds=20, memory_bytes=2**29)
        if outcome.failure != failure:
            ended = f"a program that must {'fail' if failure else 'pass'} ended otherwise"
            raise SandboxError(_refusal(f"{ended}: {' '.join(outcome.output.split())[-200:] or outcome.failure}"))
    return STRENGTH


def _refusal(fault: str) -> str:
    return (
        f"generated code cannot be walled in on this machine ({fault}): allow unprivileged user namespaces "
        "(sysctl kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns; Docker's seccomp "
        "profile), or leave the code benchmarks out"
    )


def _read_both(launcher: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bytes, Failure | None]:
    """The program's output and its verdict, each until its end, the deadline or too much of it."""
    assert launcher.stdout is not None
    assert launcher.stderr is not None
    texts = {launcher.stdout.fileno(): b"", launcher.stderr.fileno(): b""}
    failure: Failure | None = None
    with selectors.DefaultSelector() as selector:
        for descriptor in texts:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map() and failure is None:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                failure = "time"
            for key, _ in ready:
                piece = os.read(key.fd, 2**16)
                texts[key.fd] += piece
                if not piece:
                    selector.unregister(key.fd)
                elif len(texts[key.fd]) > MAX_OUTPUT_BYTES:
                    failure = "output"
        if failure is None:
            try:
                launcher.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                failure = "time"
    output, verdict = (texts[pipe.fileno()][:MAX_OUTPUT_BYTES] for pipe in (launcher.stdout, launcher.stderr))
    return output, verdict, failure
