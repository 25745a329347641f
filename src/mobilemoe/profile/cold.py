"""A cold start: a new process of this Python loads a model, writes a token, and reports time and memory.

The page cache is warm, since the caller has opened the model before.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mobilemoe.errors import MobileMoEError
from mobilemoe.profile.child import measure_in_child

PROMPT = "Once upon a time, in a small village by the sea,"
# The clock starts before mobilemoe is imported.
_CHILD = "import time\nbegan = time.perf_counter()\nfrom mobilemoe.profile.cold import child_main\nchild_main(began)\n"


@dataclass(frozen=True)
class ColdStart:
    """Seconds to the first token, from before the import and from `load`, if measured; peak memory."""

    from_import_s: float | None
    from_load_s: float | None
    peak_rss_bytes: int


def cold_start(folder: str, options: dict[str, Any], ids: Sequence[int], *, is_text: bool) -> ColdStart:
    """Starts a process that loads `folder` with `options` of `load`, writes a token, and then computes all `ids`.

    Of `routing` the options have the fields. The first token follows a short prompt, which is encoded with the
    tokenizer if `is_text` and the context has room for it, else the first of `ids`.
    """
    job = {"folder": folder, "options": options, "ids": list(ids), "is_text": is_text}
    return ColdStart(**measure_in_child(_CHILD, job, "measuring a cold start", MobileMoEError))


def child_main(began: float) -> None:
    """Runs in the new process: reads a job from standard input, writes a ColdStart as JSON to standard output."""
    from mobilemoe.load import load
    from mobilemoe.routing import Routing

    job = json.load(sys.stdin)
    job["options"]["routing"] = Routing(**job["options"].get("routing", {}))
    load_began = time.perf_counter()
    model = load(job["folder"], **job["options"])
    if job["is_text"] and len(model.encode(PROMPT)) < model.context:
        model.generate(PROMPT, max_new_tokens=1)
    else:
        model.logits(job["ids"][:1])
    first = time.perf_counter()
    model.loglikelihood(job["ids"][:-1], job["ids"][-1:])
    result = {"from_import_s": first - began, "from_load_s": first - load_began, "peak_rss_bytes": peak_rss_bytes()}
    print(json.dumps(result))


def forget_peak_rss() -> None:
    """Lets the peak begin anew, where the system can do that (Linux)."""
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak_rss_bytes() -> int:
    """The peak memory of this process alone; on Linux, getrusage also counts the process that started it."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
