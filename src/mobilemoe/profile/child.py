"""Measuring in a new process of this Python, which gets a job as JSON and prints its result as the last line."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from mobilemoe.errors import MobileMoEError


def measure_in_child(code: str, job: dict[str, Any], what: str, error: type[MobileMoEError]) -> Any:
    """What `code` printed, which finds the job on standard input; `error` says that `what` failed, and why."""
    # -P: a folder called mobilemoe in the current folder is not imported.
    done = subprocess.run([sys.executable, "-P", "-c", code], input=json.dumps(job), capture_output=True, text=True)
    if done.returncode != 0:
        raise error(f"{what} failed: {_reason(done)}")
    return json.loads(done.stdout.splitlines()[-1])


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"signal {-done.returncode} ended its process, which may be for lack of memory"
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    kind, _, sentence = last.partition(": ")
    return sentence if kind.startswith(MobileMoEError.__module__) and sentence else last
