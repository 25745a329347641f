"""A full disk ends a run with one sentence; what was saved stays, and with space the run resumes bit for bit."""

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mobilemoe import files
from mobilemoe.checkpoint.run_folder import step_folders
from mobilemoe.errors import MachineError
from mobilemoe.train.loop import train
from mobilemoe.train.metrics import MetricsLog, read_metrics
from train_runs import assert_same, assert_whole, leftovers

pytest_plugins = ["train_runs"]
pytestmark = pytest.mark.usefixtures("quick")

FULL = r"No space left on device"
OVERRIDES = ("train.steps=4", "train.checkpoint_every=2")


@pytest.mark.parametrize("change", [1, 5, 11])
def test_whichever_write_finds_the_disk_full_nothing_saved_is_lost(recipe, unbroken, tmp_path, monkeypatch, change):
    """After the first checkpoint exists, the `change`-th fsync fails as on a full disk."""
    run, left = tmp_path / "run", [change]

    def fsync(descriptor):
        left[0] -= len(step_folders(run)) > 0
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    real = os.fsync
    monkeypatch.setattr(files.os, "fsync", fsync)
    with pytest.raises(Exception, match=FULL):
        train(recipe(*OVERRIDES), run)
    monkeypatch.undo()
    assert [path.name for path in step_folders(run)] == ["step-00000002"]
    assert_whole(run)
    assert leftovers(run) == []
    assert train(recipe(*OVERRIDES), run).finished
    assert_same(run, unbroken(*OVERRIDES))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 10 MB: room for one checkpoint of 6.4 MB, not for two."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or not mount(folder, "size=10m"):
        pytest.skip("a file system of its own needs Linux and root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def mount(folder: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_real_full_disk_is_one_sentence_and_no_loss(mobilemoe_cli, recipe, recipe_path, unbroken, small_disk):
    run = small_disk / "run"
    ended = mobilemoe_cli("train", recipe_path, "--out", run, *(f"--set={change}" for change in OVERRIDES))
    assert ended.status == 1
    sentence = ended.err.strip().splitlines()[-1]
    assert sentence.startswith("mobilemoe: ")
    assert FULL in sentence
    assert [path.name for path in step_folders(run)] == ["step-00000002"]
    assert_whole(run)
    assert leftovers(run) == []
    assert mount(small_disk, "remount,size=64m")
    assert train(recipe(*OVERRIDES), run).finished
    assert_same(run, unbroken(*OVERRIDES))


def test_metrics_that_do_not_fit_are_a_fault_of_the_machine(tmp_path):
    """A part of the line is no row, and what was there before is kept."""
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    log.write({"step": 1, "loss": 2.0})
    size = log.path.stat().st_size
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, before[1]))
    try:
        with pytest.raises(MachineError, match=r"metrics\.jsonl cannot be written after step 1: .*make room"):
            log.write({"step": 2, "loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
        log.close()
    assert [row["step"] for row in read_metrics(log.path)] == [1]
