"""The pool of workers: which runs it chooses, on which GPU, which speed it expects, and how it ends."""

import os
import signal

import pytest

from mobilemoe import accounting
from mobilemoe.errors import DataError, TrainError, UsageError
from mobilemoe.sweep import worker_pool
from mobilemoe.sweep.runs import grid_runs
from mobilemoe.sweep.table import add_row
from mobilemoe.sweep.worker import record_failure
from mobilemoe.sweep.worker_pool import _gpus, _interrupts, _last_line, _WorkerPool, choose, flops_per_second, sweep
from refusals import refusal

pytest_plugins = ["sweep_runs"]

TWO_BLOCKS = ("blocks.more={sizes=[{hidden_size=64}],tokens=[256,1024],experts=[1]}",)


def finished_row(run) -> dict:
    return run.columns | {"loss": 1.0, "key": run.key}


def test_patterns_are_taken_in_their_order_and_of_each_the_longest_first(grid):
    both = grid(*TWO_BLOCKS)
    assert [run.id for run in choose(both)] == [run.id for run in grid_runs(both)]
    chosen = choose(both, ("more", "*-dense-t*"))
    assert [run.id for run in chosen] == [
        *("d64x2-dense-t1024", "d64x2-dense-t256"),
        *("d32x1-dense-t512", "d32x1-dense-t256"),
    ]
    assert len({run.id for run in choose(both, ("all", "*"))}) == 6  # each once, however often it is matched


def test_a_pattern_without_a_run_is_named(grid):
    assert "no run and no block 'al'" in refusal(lambda: choose(grid(), ("all", "al")), UsageError)


def test_the_machines_speed_is_what_the_grid_says_or_what_a_plan_expects(grid, monkeypatch):
    assert flops_per_second(grid("scaling.flops_per_second=3e12"), []) == 3e12
    monkeypatch.setattr(worker_pool, "expected_speed", lambda recipe, config, device, processes: (1000.0, "made up"))
    run = grid_runs(grid())[0]
    assert flops_per_second(grid(), [run]) == 1000 * accounting.training_flops_per_token(run.config, 32)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"CUDA_VISIBLE_DEVICES": "3,5"}, ["3", "5"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, ["0", "1", "2"]),
        ({}, ["0", "1", "2"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b", "LOCAL_RANK": "1"}, ["GPU-b"]),
        ({"LOCAL_RANK": "4"}, ["1"]),
    ],
)
def test_gpus_are_those_that_may_be_seen_and_under_torchrun_the_ranks_own(monkeypatch, environment, expected):
    monkeypatch.setattr(worker_pool.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(worker_pool.torch.cuda, "device_count", lambda: 3)
    for name in ("CUDA_VISIBLE_DEVICES", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert _gpus() == expected


def test_without_a_gpu_there_is_none_whatever_the_environment_says(monkeypatch):
    monkeypatch.setattr(worker_pool.torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert _gpus() == []


@pytest.fixture
def started(monkeypatch):
    """The environments that workers would have been started with, and their commands."""
    calls = []

    class Popen:
        def __init__(self, command, *, env, **_):
            calls.append((command, env))
            self.stdout = open(os.devnull, "rb")  # noqa: SIM115 - as long as the worker

        def kill(self):
            self.stdout.close()

        wait = kill

    monkeypatch.setattr(worker_pool.subprocess, "Popen", Popen)
    monkeypatch.setattr(worker_pool.selectors.DefaultSelector, "register", lambda *_: None)
    return calls


def pool_of(grid, out, count: int, gpus=(), only=False) -> _WorkerPool:
    out.mkdir(exist_ok=True)
    runs = grid_runs(grid())
    return _WorkerPool(out, runs, only=only, count=count, gpus=[*gpus], on_event=lambda event, so_far: None)


def test_workers_share_the_gpus_there_and_back_and_the_cores_evenly(grid, tmp_path, started, monkeypatch):
    monkeypatch.setenv("RANK", "7")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(worker_pool, "allowed_cores", lambda: 12)
    pool = pool_of(grid, tmp_path, 6, gpus=("0", "1"))
    for number in range(6):
        pool._start(number)
    pool.end()
    assert [env["CUDA_VISIBLE_DEVICES"] for _, env in started] == ["0", "1", "1", "0", "0", "1"]
    assert {env["OMP_NUM_THREADS"] for _, env in started} == {"2"}
    assert not any({"RANK", "WORLD_SIZE"} & env.keys() for _, env in started)  # a worker is no process of torchrun
    assert (tmp_path / "logs" / "worker-7-0.log").exists()


def test_a_setting_of_threads_is_kept(grid, tmp_path, started, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    pool = pool_of(grid, tmp_path, 1)
    pool._start(0)
    pool.end()
    assert started[0][1]["OMP_NUM_THREADS"] == "5"


@pytest.mark.parametrize("only", [False, True])
def test_a_worker_is_told_its_folder_the_first_unit_and_the_requested_runs(grid, tmp_path, started, only):
    pool = pool_of(grid, tmp_path, 1, only=only)
    pool._start(0, "d32x1-dense-t256")
    pool.end()
    command = started[0][0]
    at = command.index("mobilemoe.sweep.worker")
    assert command[at + 1 : at + 3] == [str(tmp_path), "d32x1-dense-t256"]
    assert command[at + 3 :] == ([run.id for run in grid_runs(grid())] if only else [])


def test_a_summary_counts_a_run_by_its_own_key(grid, tmp_path):
    first, second, third, last = grid_runs(grid())
    pool = pool_of(grid, tmp_path, 1)
    assert pool.summary().left == (first.id, second.id, third.id, last.id)
    add_row(tmp_path / "runs.csv", finished_row(first))
    add_row(tmp_path / "runs.csv", finished_row(second) | {"key": "of another recipe"})
    record_failure(tmp_path, third, "it went\n wrong")
    found = pool.summary()
    assert (found.finished, found.failed, found.left) == ((first.id,), (third.id,), (second.id, last.id))
    pool.end()


def test_a_finished_run_of_another_recipe_stops_a_sweep_before_anything_is_written(grid, tmp_path):
    run = grid_runs(grid())[0]
    add_row(tmp_path / "runs.csv", finished_row(run) | {"key": "of another recipe"})
    sentence = refusal(lambda: sweep(grid(), tmp_path), TrainError)
    assert f"holds {run.id} as another recipe trained it" in sentence
    assert not (tmp_path / "grid.json").exists()


def test_data_that_are_nowhere_stop_a_sweep_before_anything_is_written(grid, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        sweep(grid("data.path=/nowhere"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_last_line_of_a_log_is_what_a_worker_died_of(tmp_path):
    log = tmp_path / "worker.log"
    log.write_bytes(b"Traceback\n  File\nValueError: no \xff\n\n")
    assert _last_line(log) == "ValueError: no \ufffd"
    log.write_text("\n")
    assert _last_line(log) == "its log is empty"


def test_interrupts_are_collected_and_the_handlers_put_back():
    kinds = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    outside = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup, which ignores it
    try:
        before = [signal.getsignal(kind) for kind in kinds]
        with _interrupts() as seen:
            for kind in kinds:
                signal.raise_signal(kind)
        assert seen == kinds
        assert [signal.getsignal(kind) for kind in kinds] == before
    finally:
        signal.signal(signal.SIGHUP, outside)
