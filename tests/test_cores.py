"""An engine has as many threads as its process has fast physical cores; Python, command and engine count alike."""

import json
import os
import subprocess
import sys

import pytest

from mobilemoe import cores, load
from mobilemoe.engine.native import native


def test_python_counts_as_the_engine_does():
    assert cores.allowed_cores() == native.allowed_cores()
    assert cores.default_threads() == native.default_threads()
    assert 1 <= cores.default_threads() <= cores.allowed_cores()


def test_an_engine_has_the_default_number_of_threads_unless_told_otherwise():
    assert load("nano").engine.threads == cores.default_threads()
    assert load("nano", threads=3).engine.threads == 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system knows no affinity")
def test_the_affinity_limits_python_the_engine_and_the_command():
    core = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, [{core}])\n"
        "import sys; from mobilemoe import cores, load\n"
        "print(cores.allowed_cores(), cores.default_threads(), load('nano').engine.threads, flush=True)\n"
        "sys.argv = ['mobilemoe', 'info', '--engine', '--json']; from mobilemoe.cli.main import main; main()"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    first, _, rest = out.partition("\n")
    assert first == "1 1 1"
    assert json.loads(rest)["threads"] == 1


def test_without_a_compiled_engine_the_affinity_counts(monkeypatch):
    monkeypatch.setitem(sys.modules, "mobilemoe.engine._native", None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 4, 9}, raising=False)
    assert cores.allowed_cores() == cores.default_threads() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores.allowed_cores() == (os.cpu_count() or 1)
