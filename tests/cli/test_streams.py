"""Standard streams that are closed, full or of another encoding, and arguments that are empty or no text."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from drawn import colours
from mobilemoe.cli import main as cli_main
from mobilemoe.cli.options import print_json

SCRIPT = Path(sys.executable).with_name("mobilemoe")


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a line in which $M is the console script."""
    return subprocess.run(
        ["sh", "-c", line],
        env={**os.environ, "M": str(SCRIPT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
    )


def test_what_goes_to_a_closed_standard_error_is_not_in_the_output(tiny_folder):
    failed = shell("$M info nowhere 2>&-")
    assert (failed.returncode, failed.stdout) == (1, "")
    ran = shell(f'text=$($M run {tiny_folder} "Hello" --max-new-tokens 3 2>&-) || exit; echo "$text"')
    assert ran.returncode == 0
    assert "tokens" not in ran.stdout


def test_a_closed_standard_output_ends_nothing_and_goes_into_no_file(tmp_path):
    ran = shell(f"$M plan --memory 1GB --train-flops 8e20 --png {tmp_path}/plan.png --top 1 >&- <&-")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert colours((tmp_path / "plan.png").read_bytes()) > 50  # the table went nowhere
    assert shell("$M info S >&- 2>&- <&-").returncode == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_standard_output_is_named(unbuffered):
    for options in ("", " --json"):
        failed = shell(f"$M info S{options} >/dev/full", PYTHONUNBUFFERED=unbuffered)
        assert (failed.returncode, failed.stderr) == (1, "mobilemoe: standard output: No space left on device\n")


def test_a_full_disk_is_told_by_the_name_of_what_was_to_be_written(tmp_path):
    for verb in ("convert nano {} --format bf16", "quantize nano {}"):
        failed = shell(f"ulimit -f 100; $M {verb.format(tmp_path / 'out')}")
        assert failed.returncode == 1
        assert failed.stderr.splitlines()[-1] == f"mobilemoe: {tmp_path / 'out'}: File too large"  # behind progress
        assert os.listdir(tmp_path) == []


def test_any_encoding_carries_the_json(tmp_path):
    model = tmp_path / "Übung"
    model.symlink_to(cli_main.bench.__file__)
    for name, value in (("PYTHONIOENCODING", "ascii"), ("LC_ALL", "C"), ("PYTHONIOENCODING", "latin-1:strict")):
        told = shell(f"$M info S --json && $M info {model}", **{name: value})
        assert json.loads(told.stdout.splitlines()[0])["model"] == "S"
        assert (told.returncode, "Traceback" in told.stderr) == (1, False)


def test_json_has_no_words_of_its_own_for_what_is_no_number(capsys):
    print_json({"a": float("nan"), "b": [1.5, (float("inf"),)], "c": {"d": -float("inf"), "e": "ü"}})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "a": None,
        "b": [1.5, [None]],
        "c": {"d": None, "e": "ü"},
    }


VERBS = ["chat", "info", "bench", "train", "quantize", "convert", "eval", "data tokenizer", "data sample", "plan"]
VERBS += ["run", "data prepare", "data chats", "fit", "sweep", "profile device", "report", "export"]


@pytest.mark.parametrize("verb", VERBS)
def test_an_argument_that_is_no_text_is_one_sentence(fails, verb):
    assert r"'caf\udce9' is not UTF-8 text" in fails(2, *verb.split(), "caf\udce9")


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("run", "chat")])
def test_an_empty_name_is_one_sentence(fails, verb):
    assert "is empty" in fails(2, *verb.split(), "")
    assert "--out is empty" in fails(2, *verb.split(), "x", "--out", "")
    assert "--out is empty" in fails(2, *verb.split(), "x", "--out=")


@pytest.mark.parametrize("verb", ["run", "chat"])
def test_an_empty_model_is_one_sentence(fails, verb):
    assert "the model's name is empty" in fails(1, verb, "")


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (MemoryError(), "there is not enough memory for this: take"),
        (MemoryError("std::bad_alloc"), "not enough memory for this (std::bad_alloc): take"),
        (RuntimeError("can't allocate memory: you tried 9 bytes"), "not enough memory for this"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (OSError(28, "No space left on device", "/somewhere"), "/somewhere: No space left"),
    ],
    ids=repr,
)
def test_what_the_machine_lacks_is_one_sentence(fails, monkeypatch, fault, sentence):
    def verb():
        raise fault

    monkeypatch.setattr(cli_main, "app", verb)
    assert sentence in fails(1, "info", "S")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_nothing_depends_on_standard_error():
    """Its disk may be full, and its reader or its terminal gone: what was asked for is done all the same."""
    asked = "$M run nano Hello --max-new-tokens 3"
    wanted = shell(f"{asked} 2>/dev/null")
    assert wanted.returncode == 0
    for line in (f"{asked} 2>/dev/full", f"(sleep 0.1; {asked}) 2>&1 >out | true; cat out"):
        ran = shell(f"cd $(mktemp -d); {line}")
        assert (ran.returncode, ran.stdout) == (0, wanted.stdout), line
    assert shell("$M info nowhere 2>/dev/full").returncode == 1


def test_a_package_that_cannot_be_loaded_is_not_called_missing(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch_cpu.so: failed to map segment')")
    failed = shell("$M run nano Hello --backend torch", PYTHONPATH=str(tmp_path))
    assert failed.returncode == 1
    assert failed.stderr == (
        "mobilemoe: a package that this needs is installed, but cannot be loaded here "
        "(libtorch_cpu.so: failed to map segment)\n"
    )


def test_a_current_folder_that_was_removed_is_one_sentence(tmp_path):
    for verb in ("run nano Hello --backend torch", "info nano"):
        failed = shell(f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir ../gone; $M {verb}")
        assert (failed.returncode, failed.stdout) == (2, "")
        assert failed.stderr.startswith("mobilemoe: the current folder cannot be used (No such file or directory)")
        assert failed.stderr.count("\n") == 1
