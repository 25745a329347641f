"""A process that runs verbs for the tests of damage: all that verbs import is here once, and each call is a fork.

Reads JSON lines {arguments, folder, stdin, unreadable, most_bytes, cache} and answers {status, seconds} once the call
has ended; its standard streams are the files stdin, stdout and stderr of `folder`. `unreadable`: it runs without root's
right to read what nobody may read. `most_bytes`: of any file that it writes. `cache`: the user's cache, in `folder`.
Status None: it was killed, at TIMEOUT.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib
import io
import json
import os
import pkgutil
import resource
import select
import signal
import sys
import time
import traceback
from pathlib import Path

import typer

import mobilemoe
from mobilemoe.cli import main as cli_main

TIMEOUT = 300.0  # seconds of wall-clock time; the tests themselves limit the CPU time
MEMORY = 4 * 2**30  # bytes beyond what is mapped already
_ROOT = Path(mobilemoe.__file__).parent


def import_all() -> None:
    """What verbs would import in each call. The extra `executorch` has an environment of its own."""
    for module in pkgutil.walk_packages([str(_ROOT)], "mobilemoe."):
        if not module.name.endswith(("__main__", "sandbox_inside", ".executorch", ".executorch_model")):
            importlib.import_module(module.name)
    for name in ("torch._dynamo", "matplotlib.pyplot", "pyarrow.parquet", "scipy.optimize", "jinja2.sandbox"):
        importlib.import_module(name)


def forget_root() -> None:
    """Gives up the capabilities by which root reads and enters what modes forbid."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    if libc.capget(header, data) == 0:
        for word in range(3):  # effective, permitted, inheritable: CAP_DAC_OVERRIDE is 1, CAP_DAC_READ_SEARCH 2
            data[word] &= ~0b110
        libc.capset(header, data)


def run(order: dict) -> None:
    """The call itself; does not return."""
    folder = Path(order["folder"])
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(folder / order["cache"])
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        path = folder / name
        path.write_bytes(order["stdin"].encode(errors="surrogateescape") if number == 0 else b"")
        os.dup2(os.open(path, os.O_RDWR), number)
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), encoding="utf-8")
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)), encoding="utf-8")
    sys.stderr = io.TextIOWrapper(
        io.FileIO(2, "w", closefd=False), encoding="utf-8", errors="backslashreplace", write_through=True
    )
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    if order["most_bytes"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["most_bytes"],) * 2)
    if order["unreadable"]:
        forget_root()
    sys.argv = ["mobilemoe", *order["arguments"]]
    status = 1
    try:
        cli_main.main()
    except SystemExit as ended:
        status = ended.code or 0
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            status = 120
    os._exit(status)


def watch(child: int) -> dict:
    """Waits for the call's end, not longer than TIMEOUT."""
    began = time.monotonic()
    watched = os.pidfd_open(child)
    ended = select.select([watched], [], [], TIMEOUT)[0]
    os.close(watched)
    if not ended:
        os.killpg(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status) if ended else None
    return {"status": code, "seconds": used.ru_utime + used.ru_stime, "wall": time.monotonic() - began}


if __name__ == "__main__":
    import_all()
    typer.main.get_command = functools.cache(typer.main.get_command)
    typer.main.get_command(cli_main.app)  # made once, not in each call
    gc.freeze()  # or every collection in a fork would copy all pages
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.setsid()
            run(json.loads(line))
        print(json.dumps(watch(child)), flush=True)
