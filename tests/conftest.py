"""What all tests share: settings that are read when torch is imported, an empty cache, a tiny model."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The same examples in every run, however long a busy machine takes for one of them.
settings.register_profile("steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

# Read when torch is first imported, later than this. On busy cores its threads spin: 12 times the processor time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What the tests expect of speed, memory and words is what a CPU gives. `make test-gpu` tests the kernels on a GPU.
if "MOBILEMOE_TEST_GPU" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported

# `nohup` and a shell's `&` start a process that ignores Ctrl-C, and so would all that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest.register_assert_rewrite(*(path.stem for path in Path(__file__).parent.glob("helpers/*.py")))
pytest_plugins = ["cli_calls", "conversions", "drawn", "engine_models", "tiny_model"]


@pytest.fixture(scope="session", autouse=True)
def engine_cache(tmp_path_factory) -> Path:
    """Engine files are kept here, also by the processes that tests start, and not in the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    return folder


def pytest_terminal_summary(terminalreporter) -> None:
    """Says how many calls the tests of damage have made."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, ())]
    calls = [count for report in reports for name, count in report.user_properties if name == "damaged"]
    if calls:
        terminalreporter.write_line(f"{sum(calls):,} calls of verbs with damaged files")
