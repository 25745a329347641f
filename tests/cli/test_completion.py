"""What a shell that `mobilemoe --install-completion` has prepared is offered."""

import os
import subprocess
import sys

import pytest


def mobilemoe(*arguments, **variables):
    """What the console script prints when bash calls it."""
    program = f"import sys; sys.argv = {['mobilemoe', *arguments]}; from mobilemoe_command import main; main()"
    called = ["bash", "-c", '"$0" "$@"; exit', sys.executable, "-c", program]  # the end keeps bash as the parent
    return subprocess.run(called, capture_output=True, text=True, env={**os.environ, **variables}, timeout=120).stdout


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("quan", ["quantize"]),
        ("run --top-", ["--top-k", "--top-p"]),
        ("cache l", ["ls"]),
        ("pul", ["pull"]),
        ("rm --y", ["--yes"]),
    ],
)
def test_verbs_and_options_are_completed(typed, expected):
    words = ["mobilemoe", *typed.split()]
    asked = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    assert mobilemoe(_MOBILEMOE_COMPLETE="complete_bash", **asked).split() == expected


def test_the_script_for_the_shell_that_asks_calls_the_command_itself():
    assert "_MOBILEMOE_COMPLETE=complete_bash" in mobilemoe("--show-completion")
