"""Each run of a sweep is done once, in the stated order, and its row is kept whatever stops the others."""

import csv
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from mobilemoe.errors import MachineError, TrainError
from mobilemoe.sweep.faults import machine_fault
from mobilemoe.sweep.runs import grid_runs
from mobilemoe.sweep.table import add_row, read_rows
from mobilemoe.sweep.worker_pool import sweep
from sweep_runs import losses

pytest_plugins = ["sweep_runs"]


@pytest.fixture(scope="module")
def done(forked_sweep, tmp_path_factory):
    """The folder of a sweep that nothing stopped, by two workers, and how it ended."""
    out = tmp_path_factory.mktemp("done") / "sweep"
    return out, forked_sweep(out, processes=2)


def test_every_run_gives_one_row_that_says_how_to_repeat_it(grid, done):
    out, ended = done
    assert (len(ended["finished"]), ended["failed"], ended["left"], ended["workers"]) == (4, [], [], 2)
    assert [event["event"] for event in ended["events"]].count("finished") == 4
    assert not (out / "failures.csv").exists()
    rows = {row["id"]: row for row in read_rows(out / "runs.csv")}
    assert sorted(rows) == sorted(run.id for run in grid_runs(grid()))
    for run in grid_runs(grid()):
        row = rows[run.id]
        assert {name: row[name] for name in run.columns} == {name: str(value) for name, value in run.columns.items()}
        loss = 0.6 * float(row["loss_books"]) + 0.4 * float(row["loss_code"])
        assert float(row["loss"]) == pytest.approx(loss, abs=2e-6)
        documents = list(csv.DictReader((out / "documents" / f"{run.id}.csv").read_text().splitlines()))
        code = [row for row in documents if row["domain"] == "code"]
        assert len({row["document"] for row in code}) == len(code) >= 1
        targets = sum(int(row["targets"]) for row in code)
        assert 200 < targets < 256
        assert sum(float(row["nats"]) for row in code) / targets == pytest.approx(float(row["loss_code"]), abs=1e-4)
        assert 5 < float(row["loss"]) < 12
        assert float(row["bits_per_byte"]) < float(row["loss"])
        assert 5 < float(row["train_loss"]) < 12
        assert (row["repeated"], row["key"]) == ("0", run.key)
        assert all(row[name] for name in ("data", "heldout", "code", "torch", "device"))
        assert not (out / "runs" / run.id / "checkpoints").exists()
        assert json.loads((out / "runs" / run.id / "recipe.json").read_text())["name"] == run.id


def test_what_is_finished_is_not_done_again(forked_sweep, done):
    out, _ = done
    again = forked_sweep(out)
    assert (len(again["finished"]), again["workers"], again["events"]) == (4, 0, [])


def test_another_recipe_under_the_same_id_is_refused(grid, done):
    out, _ = done
    with pytest.raises(TrainError, match="as another recipe trained it"):
        sweep(grid("train.learning_rate=2e-2"), out)


def test_data_that_is_seen_twice_is_marked(forked_sweep, tmp_path):
    for name in ("books", "code"):
        (tmp_path / f"{name}-0.jsonl").write_text(json.dumps({"text": "All of the text there is.", "source": "one"}))
    forked_sweep(tmp_path, f"data.path={tmp_path}", "data.holdout=0", only=("d32x1-dense-t256",))
    assert read_rows(tmp_path / "runs.csv")[0]["repeated"] == "1"


def test_a_killed_sweep_goes_on_to_the_same_rows(forked_sweep, done, tmp_path):
    """Interrupted (what is under way is saved), then killed outright, then left to end."""
    begun = []

    def interrupt(event):
        begun.append(event)
        if event["event"] == "started" and len(begun) == 2:
            wait_for(tmp_path, "runs/*/metrics.jsonl")  # a step is done
            os.kill(begun[0]["process"], signal.SIGINT)

    def kill(event):
        if event["event"] == "begun":
            begun[:] = [event]
        elif event["event"] == "started":
            os.kill(begun[0]["process"], signal.SIGKILL)

    first = forked_sweep(tmp_path, slow=0.1, hear=interrupt)
    assert first["left"]
    assert first["failed"] == []
    second = forked_sweep(tmp_path, hear=kill)
    assert second["killed"]
    third = forked_sweep(tmp_path)
    assert len(third["finished"]) == 4
    assert losses(tmp_path) == losses(done[0])


def wait_for(folder: Path, pattern: str) -> None:
    end = time.monotonic() + 60
    while not any(path.stat().st_size for path in folder.glob(pattern)):
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_run_that_fails_is_recorded_and_the_others_end(forked_sweep, tmp_path):
    """One whose numbers go wrong, and one whose process dies of itself."""
    overrides = ("blocks.all.rates=[1,1e20]", "blocks.all.experts=[1]")
    ended = forked_sweep(tmp_path, *overrides, dies={"d32x1-dense-t256": signal.SIGSEGV})
    assert ended["finished"] == ["d32x1-dense-t512"]
    reasons = {row["id"]: row["reason"] for row in read_rows(tmp_path / "failures.csv")}
    assert sorted(reasons) == sorted(ended["failed"])
    assert "its process ended with signal 11" in reasons.pop("d32x1-dense-t256")
    assert sorted(reasons) == ["d32x1-dense-t256-rate1e20", "d32x1-dense-t512-rate1e20"]
    assert all("gradient norm" in reason for reason in reasons.values())

    again = forked_sweep(tmp_path, *overrides)
    assert (sorted(again["failed"]), again["events"]) == (sorted(ended["failed"]), [])
    tried = forked_sweep(tmp_path, *overrides, only=("d32x1-dense-t256",))
    assert tried["finished"] == ["d32x1-dense-t256"]
    assert sorted(row["id"] for row in read_rows(tmp_path / "failures.csv")) == sorted(reasons)


def test_a_fault_of_the_machine_stops_the_sweep_and_is_no_runs(forked_sweep, done, tmp_path):
    """First a file cannot be written, as on a full disk; then a process is killed, as happens when memory runs out."""
    (tmp_path / "documents").write_text("in the way")
    stopped = forked_sweep(tmp_path, processes=2)
    assert "the same command continues from there" in stopped["error"]
    assert "documents" in stopped["error"]
    (tmp_path / "documents").unlink()
    killed = forked_sweep(tmp_path, dies={"d32x1-e2g2s1-t512": signal.SIGKILL})
    assert "was killed, as happens when memory runs out" in killed["error"]
    assert not (tmp_path / "failures.csv").exists()
    assert len(forked_sweep(tmp_path)["finished"]) == 4
    assert losses(tmp_path) == losses(done[0])


def test_a_worker_that_dies_when_its_run_was_finished_has_not_failed(forked_sweep, tmp_path):
    """Its row is there, but its last words did not come."""
    name = "d32x1-dense-t256"
    forked_sweep(tmp_path, only=(name,))
    row = read_rows(tmp_path / "runs.csv")[0]
    (tmp_path / "runs.csv").unlink()

    def finish(event):
        if event.get("id") == name and event["event"] == "started":
            add_row(tmp_path / "runs.csv", row)

    ended = forked_sweep(tmp_path, only=(name, "d32x1-dense-t512"), dies={name: signal.SIGKILL}, hear=finish)
    assert (len(ended["finished"]), ended["failed"]) == (2, [])


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (OSError(28, "No space left on device", "runs.csv"), "runs.csv: No space left on device"),
        (MemoryError(), "not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "not enough memory"),
        (RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"), "taken"),
        (MachineError("the checkpoint cannot be written"), "cannot be written"),
        (TrainError("the loss is no number"), None),
        (RuntimeError("CUDA error: device-side assert triggered"), None),
        (ValueError("shapes"), None),
    ],
)
def test_faults_of_the_machine_and_of_the_run_are_told_apart(fault, reason):
    said = machine_fault(fault)
    assert said is None if reason is None else reason in said


def test_a_sweep_that_cannot_start_says_why_once(forked_sweep, tmp_path):
    assert "does not exist: set path" in forked_sweep(tmp_path, "data.path=/nowhere")["error"]
    assert "set heldout.path" in forked_sweep(tmp_path, "heldout.path=/nowhere")["error"]
    assert not (tmp_path / "failures.csv").exists()
