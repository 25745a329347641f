"""How many cores this process may use: of what the machine has, those that its affinity and its cgroups leave it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PROCESS, _MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def allowed_cores(process: Path = _PROCESS, mount: Path = _MOUNT) -> int:
    """At least 1: the cores of the affinity (taskset, cpusets), or fewer where a quota is less (2.5 cores are 2).

    `process` says which cgroups this process is in, and `mount` is where they are mounted.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # a system that knows none
        cores = os.cpu_count() or 1
    return max(1, int(min([cores, *_quotas(process, mount)])))


def _quotas(process: Path, mount: Path) -> Iterator[float]:
    """Seconds of a core in a second that the cgroups of the process and those above may take, if limited."""
    try:
        lines = process.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mount / "cpu" if controllers else mount  # version 1 or 2
        folder = root / path.lstrip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(root):
                with suppress(OSError, ValueError, IndexError, ZeroDivisionError):
                    quota, period = _limits(place, version_1=bool(controllers))
                    if quota > 0:
                        yield quota / period


def _limits(folder: Path, *, version_1: bool) -> tuple[int, int]:
    """Microseconds in a period, and the period's own; without a limit the first is negative, or is no number."""
    if version_1:
        return int((folder / "cpu.cfs_quota_us").read_text()), int((folder / "cpu.cfs_period_us").read_text())
    quota, period = (folder / "cpu.max").read_text().split()
    return int(quota), int(period)
