"""Finds the files that a Python interpreter needs to run a program; the sandbox shows no others."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from functools import cache

_SECONDS = 60.0
# Run in the interpreter itself: with all modules of the standard library loaded that are compiled, the loader knows
# every shared library that a program may come to need. The windows of Tk and what is only for tests stay out.
_PROBE = """
import ctypes, importlib, json, os, sys, sysconfig

class Info(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("name", ctypes.c_char_p)]

compiled = [folder for folder in sys.path if folder.endswith("lib-dynload") and os.path.isdir(folder)]
for name in sorted({file.split(".")[0] for folder in compiled for file in os.listdir(folder)}):
    if not name.startswith(("_test", "_tkinter", "_xx", "xx")):
        try: importlib.import_module(name)
        except Exception: pass
try: ctypes.CDLL("libgcc_s.so.1")  # threads that end may ask for it
except OSError: pass
names = []
visit = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Info), ctypes.c_size_t, ctypes.c_void_p)
ctypes.CDLL(None).dl_iterate_phdr(visit(lambda info, size, data: names.append(info.contents.name) or 0), None)
libraries = [os.fsdecode(name) for name in names if name and name.startswith(b"/")]
folders = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), *compiled]
print(json.dumps([libraries, folders]))
"""


@dataclass(frozen=True)
class Visible:
    """Real paths of files and folders, what stays hidden in those folders, and the symbolic links that lead there."""

    files: list[str]
    folders: list[str]
    hidden: list[str]
    links: dict[str, str]


@cache
def visible_files(python: str) -> Visible:
    """The files that the interpreter `python` (a real path) needs. OSError if they cannot be listed."""
    try:
        done = subprocess.run(
            [python, "-I", "-S", "-B", "-c", _PROBE], capture_output=True, env={}, cwd="/", timeout=_SECONDS, check=True
        )
        libraries, folders = json.loads(done.stdout.splitlines()[-1])  # a module may have printed something before
    except (subprocess.SubprocessError, ValueError, IndexError) as fault:
        raise OSError(f"the files that {python} needs cannot be listed: {fault}") from None
    links: dict[str, str] = {}
    whole = {_trace(folder, links) for folder in folders if os.path.isdir(folder)}
    roots = [folder for folder in sorted(whole) if not _within(folder, whole - {folder})]
    hidden = [
        path
        for folder in roots
        for name in ("site-packages", "dist-packages")
        if os.path.isdir(path := os.path.join(folder, name))
    ]
    wanted = [python, *libraries, "/etc/ld.so.cache"]
    files = {_trace(path, links) for path in wanted if os.path.isfile(path)}
    return Visible(
        sorted(path for path in files if not _within(path, whole)),
        roots,
        hidden,
        {path: target for path, target in links.items() if not _within(path, whole)},
    )


def _trace(path: str, links: dict[str, str]) -> str:
    """Where `path` leads; the symbolic links on the way are put into `links`."""
    here, parts = "/", path.split("/")
    while parts:
        part = parts.pop(0)
        there = os.path.normpath(os.path.join(here, part))
        if part != ".." and os.path.islink(there):
            links[there] = target = os.readlink(there)
            here = "/" if target.startswith("/") else here
            parts = target.split("/") + parts
        else:
            here = there
    return here


def _within(path: str, folders: set[str]) -> bool:
    return any(path.startswith(folder + "/") for folder in folders)
