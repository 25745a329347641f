"""Builds lm_eval's tasks for a suite, with the reason for each that is missing."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mobilemoe.errors import DataError, MissingExtraError, UsageError
from mobilemoe.evaluate.tasks.local import Unavailable
from mobilemoe.evaluate.tasks.sandbox.run import SandboxError, sandbox_strength
from mobilemoe.evaluate.tasks.suites import Benchmark


def build_tasks(
    benchmarks: tuple[Benchmark, ...], data_dir: Path | None, allow_code: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """lm_eval's task of each benchmark, or a list of them for one of several parts, and why the others are missing.

    With `data_dir` the items are those of its files (local.py), without it lm_eval fetches them from the Hub.
    Benchmarks of code are built only with `allow_code`, and where the sandbox works. A benchmark's limit is applied.
    A damaged file is a reason, with the line. Raises MissingExtraError, and UsageError if `data_dir` is no folder.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise UsageError(f"{data_dir} is no folder of benchmark data")
    try:
        from mobilemoe.evaluate.tasks import lm_tasks
    except ModuleNotFoundError:
        raise MissingExtraError("evaluation on benchmarks", "eval") from None
    tasks: dict[str, Any] = {}
    missing: dict[str, str] = {}
    with ExitStack() as network:
        for benchmark in benchmarks:
            try:
                if benchmark.task is None:
                    raise Unavailable("it is no task of lm_eval 0.4.13")
                if benchmark.kind == "code" and not allow_code:
                    raise Unavailable("it runs code that the model writes: allow it, in a sandbox, with --allow-code")
                if benchmark.kind == "code":
                    sandbox_strength()
                tasks[benchmark.name] = lm_tasks.build_task(benchmark, data_dir)
            except (Unavailable, SandboxError, DataError) as reason:
                missing[benchmark.name] = str(reason)
                if isinstance(reason, lm_tasks.HubUnreachable):  # its client tries each for half a minute
                    network.enter_context(lm_tasks.cache_alone())
    return tasks, missing
