"""Real pipes, encodings and signals: the console script in a separate process."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from cli_calls import RECIPE, recipe_options
from tiny_model import write_model

SCRIPT = Path(sys.executable).with_name("mobilemoe")


@pytest.fixture(scope="session")
def long_folder(tmp_path_factory) -> Path:
    """A model that writes for many seconds, and more than a pipe holds: it cannot end before it is read."""
    return write_model(tmp_path_factory.mktemp("models") / "long", max_position_embeddings=65536)


@pytest.fixture
def start(tmp_path):
    """Starts the console script; whatever is still running at the end is killed."""
    running = []

    def call(*arguments, environment=None, **options) -> subprocess.Popen:
        process = subprocess.Popen(
            [SCRIPT, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(environment or {})},
            **{
                **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE),
                # Where the tests are a job in the background, their children would ignore it.
                "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                **options,
            },
        )
        running.append(process)
        return process

    yield call
    for process in running:
        process.kill()
        process.communicate()


def test_a_reader_that_leaves_is_no_fault(start, long_folder):
    process = start("run", long_folder, "hello", "--max-new-tokens", "60000")
    assert process.stdout.read(5)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(120) in (0, 1)


def test_ctrl_c_ends_run_with_130(start, long_folder):
    process = start("run", long_folder, "hello", "--max-new-tokens", "60000")
    assert process.stdout.read(5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err == b"mobilemoe: interrupted\n"


INTERRUPTED = """
import sys, mobilemoe_command
interrupted, sys.argv = sys.argv[1], ["mobilemoe", "info", "nano"]

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == interrupted:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Finder())
mobilemoe_command.main()
"""


@pytest.mark.parametrize("module", ["mobilemoe", "numpy", "typer.main", "mobilemoe.cli.sweep", "mobilemoe.accounting"])
def test_ctrl_c_while_modules_are_loaded_is_one_line_too(module):
    ended = subprocess.run([sys.executable, "-c", INTERRUPTED, module], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "mobilemoe: interrupted\n")


def test_ctrl_c_ends_an_answer_and_not_the_conversation(start, long_folder):
    process = start("chat", long_folder, "--max-new-tokens", "60000", "--json")
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    assert process.stdout.read(5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(b"/exit\n", timeout=120)
    assert (process.returncode, err) == (0, b"")
    assert [message["role"] for message in json.loads(out.splitlines()[-1])["messages"]] == ["user", "assistant"]


def test_ctrl_c_saves_a_training_run(start, tiny_folder):
    options = ["--out", "run", "--json", "--set", "train.steps=100000"]
    process = start("train", RECIPE, *recipe_options(tiny_folder), *options)
    assert any(b"step 10/" in line for line in iter(process.stderr.readline, b""))  # notes may come before it
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    values = json.loads(out.splitlines()[-1])
    assert values["finished"] is False
    assert values["steps"] >= 10


def test_closed_narrow_and_full_streams_are_no_fault(start, tiny_folder):
    closed = start("run", tiny_folder, preexec_fn=lambda: os.close(0))
    assert b"standard input is closed" in closed.communicate(timeout=120)[1]
    assert closed.returncode == 2
    options = ["--temperature", "5", "--seed", "1", "--max-new-tokens", "200"]
    narrow = start("run", tiny_folder, "x", *options, environment={"PYTHONIOENCODING": "ascii"})
    out, err = narrow.communicate(timeout=120)
    assert narrow.returncode == 0, err
    assert b"?" in out
    with open("/dev/full", "wb") as full:
        disk = start("info", "S", "--json", stdout=full)
    assert disk.communicate(timeout=120)[1] == b"mobilemoe: standard output: No space left on device\n"
    assert disk.returncode == 1
    for number in (1, 2):  # what is closed says nothing, and nothing is said elsewhere in its place
        shut = start("run", tiny_folder, "x", "--max-new-tokens", "3", preexec_fn=partial(os.close, number))
        streams = shut.communicate(timeout=120)
        assert streams[number - 1] == b""
        assert b"3 tokens" in streams[1] if number == 1 else b"tokens" not in streams[0]
        assert shut.returncode == 0
