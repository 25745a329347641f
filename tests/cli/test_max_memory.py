"""`--max-memory` takes sizes as people write them, and what is none is one sentence."""

import subprocess
import sys

import pytest

from mobilemoe.errors import UsageError
from mobilemoe.evaluate.compare.bits_per_byte import score_file
from mobilemoe.load import load
from places import HELDOUT


@pytest.mark.parametrize("size", ["0", "0.5", "-1", "1e30", "50%", "nan", "inf", "", "GB", "1,5GB"])
def test_what_is_no_size_of_memory_is_refused_as_it_was_written(fails, size):
    assert f"--max-memory is {size!r}, but must be" in fails(2, "run", "nano", "Once", f"--max-memory={size}")


@pytest.mark.parametrize("size", ["1 GB", "1GiB", "500mb", "1e9", "90000000000"])
def test_a_size_with_room_for_all_writes_what_no_limit_does(mobilemoe_cli, size):
    """In a process of its own, since the limit counts all that this one holds."""
    text = ("run", "nano", "Once upon", "--max-new-tokens", "8")
    command = [sys.executable, "-m", "mobilemoe", *text, "--max-memory", size]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == mobilemoe_cli(*text).out


def test_a_window_that_there_is_no_memory_for_is_refused_and_a_shorter_one_is_scored():
    model = load("nano")
    expected = score_file(model, HELDOUT, window=64)["all"]
    model.engine.context = 64
    with pytest.raises(UsageError, match=r"memory for 64 tokens of context, .*such as --window 64"):
        score_file(model, HELDOUT)
    assert score_file(model, HELDOUT, window=64)["all"] == expected
