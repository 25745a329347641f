"""How many cores this process may use, and how many threads are best there: as the engine finds it
(native/src/threads/cores.h). Where the engine is not compiled, the cores of the affinity."""

from __future__ import annotations

import os

from mobilemoe.errors import MobileMoEError


def allowed_cores() -> int:
    """At least 1: the cores of the affinity (taskset, cpusets), or fewer where a cgroup's quota is less (2.5 are 2)."""
    try:
        from mobilemoe.engine._native import allowed_cores
    except (ImportError, MobileMoEError):
        return _affinity()
    return allowed_cores()


def default_threads() -> int:
    """At least 1 and at most `allowed_cores()`: one for each physical core that is about as fast as the fastest."""
    try:
        from mobilemoe.engine._native import default_threads
    except (ImportError, MobileMoEError):
        return _affinity()
    return default_threads()


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # a system that knows none
        return os.cpu_count() or 1
