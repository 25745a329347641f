"""Long work says how far it is: a bar on a terminal, a line now and then on a pipe, nothing in between the results."""

import itertools
import json
import os
import pty
import subprocess
import sys
from types import SimpleNamespace

import pytest

from cli_calls import RECIPE
from mobilemoe.progress import Progress, each, tell
from places import HELDOUT, ROOT, TRAINING_TEXT
from sweep_runs import GRID


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("mobilemoe.progress.time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_on_a_pipe_there_is_at_most_a_line_each_ten_seconds(clock, capsys):
    with Progress():
        for second in range(61):
            clock.now = float(second)
            tell(second, 60, "steps")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert lines[0] == "steps: 10 of 60, 50 s left"
    assert lines[-1] == "steps: 60 of 60, 0 s left"


def test_work_that_is_soon_done_says_nothing(clock, capsys):
    with Progress():
        assert list(each("abc", "letters")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_without_a_verb_that_shows_it_nothing_is_said(clock, capsys):
    for _ in each(range(3), "items"):
        clock.now += 100
    assert capsys.readouterr() == ("", "")


def test_of_two_that_are_open_the_inner_one_is_told(clock, capsys):
    with Progress(seconds=1000), Progress():
        clock.now = 20
        tell(1, 2, "inner")
    assert capsys.readouterr().err.splitlines() == ["inner: 1 of 2"]


VERBS = {
    "convert": (["convert", "nano", "OUT", "--format", "bf16"], "tensors written"),
    "quantize": (["quantize", "nano", "OUT"], "weights compared"),
    "prune": (["prune", "nano", "--text", "TEXT", "--experts", "17", "--out", "OUT"], "texts routed, layer by layer"),
    "export gguf": (["export", "nano", "--to", "gguf", "--out", "OUT"], "tensors written"),
    "export glm4moe": (["export", "nano", "--to", "glm4moe", "--out", "OUT"], "weights compared"),
    "fit": (["fit", str(ROOT / "recipes/sweep/runs.csv"), "--law", "paper-E", "--bootstraps", "100"], "resamples"),
    "eval": (["eval", "nano", "--text", "TEXT", "--window", "64"], "texts"),
    "tradeoff": (["tradeoff", "nano", "--text", "TEXT", "--out", "OUT", "--window", "64"], "ways to route, scored"),
    "data prepare": (["data", "prepare", str(RECIPE), "OUT", "--set", f"data.path={TRAINING_TEXT}"], "tokens"),
    "data tokenizer": (
        ["data", "tokenizer", str(RECIPE), "OUT", "--vocab-size", "400", "--megabytes", "0.1"],
        "bytes of text",
    ),
    "data sample": (["data", "sample", str(RECIPE), "OUT", "--split", "train"], "documents"),
    "bench": (["bench", "micro", "--random", "--prefill", "16", "--depths", "0", "--repeats", "1"], " of "),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_shows_progress_on_standard_error_and_only_there(verb, mobilemoe_cli, monkeypatch, tmp_path):
    arguments, said = VERBS[verb]
    monkeypatch.chdir(ROOT)
    seconds = itertools.count(0, 1000)
    monkeypatch.setattr("mobilemoe.progress.time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    places = {"OUT": tmp_path / "out", "TEXT": tmp_path / "text.jsonl"}
    places["TEXT"].write_text("".join(HELDOUT.read_text().splitlines(keepends=True)[:20]))
    ended = mobilemoe_cli(*[places.get(argument, argument) for argument in arguments], "--json")
    assert ended.status == 0, ended.err
    assert said in ended.err
    assert len(ended.out.splitlines()) == 1
    assert isinstance(ended.json, dict)


def test_a_sweep_shows_how_many_runs_have_ended(mobilemoe_cli, monkeypatch, tmp_path):
    (tmp_path / "grid.toml").write_text(GRID)
    monkeypatch.chdir(ROOT)
    seconds = itertools.count(0, 1000)
    monkeypatch.setattr("mobilemoe.progress.time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    ended = mobilemoe_cli("sweep", tmp_path / "grid.toml", "--out", tmp_path / "sweep", "--json")
    assert ended.status == 0, ended.err
    assert "runs ended: " in ended.err


def test_on_a_terminal_there_is_a_bar_and_standard_output_stays_clean(tmp_path):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "mobilemoe", "convert", "nano", tmp_path / "out", "--format", "bf16", "--json"]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            shown += piece
            if not piece:
                break
        out, _ = process.communicate(timeout=120)
    os.close(ours)
    assert "tensors written" in shown.decode()
    assert "━" in shown.decode()
    assert set(json.loads(out)) == {"folder", "lossless", "errors"}
