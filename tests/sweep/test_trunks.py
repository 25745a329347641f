"""Runs that share a trunk equal the same runs trained separately, at lower cost, whatever interrupts them."""

import os
import signal
import time

import pytest

from mobilemoe.sweep.grid import load_grid
from mobilemoe.sweep.runs import grid_runs
from mobilemoe.sweep.units import own_costs, units
from sweep_runs import losses

pytest_plugins = ["sweep_runs"]

# Decays of 2, 3 and 6 steps begin at steps 8, 13 and 26 of one trunk.
WSD = (
    *("train.schedule=wsd", "scaling.batch_exponent=0", "train.checkpoint_every=5", "train.keep_checkpoints=1"),
    *("blocks.all.tokens=[640,1024,2048]", "blocks.all.experts=[2]"),
)
SHORT, MIDDLE, LONG = (f"d32x1-e2g2s1-t{tokens}" for tokens in (640, 1024, 2048))


@pytest.fixture(scope="module")
def shared(forked_sweep, tmp_path_factory):
    """The folder of a sweep in which the three runs share a trunk."""
    out = tmp_path_factory.mktemp("shared")
    ended = forked_sweep(out, *WSD)
    assert ended["finished"] == [LONG, MIDDLE, SHORT]
    assert [event["id"] for event in ended["events"] if event["event"] == "finished"] == [SHORT, MIDDLE, LONG]
    return out


def test_a_trunk_is_one_unit_whose_tokens_are_trained_once(grid_path):
    runs = grid_runs(load_grid(grid_path, WSD))
    (unit,) = units(runs)
    assert (unit.id, [run.id for run in unit.runs]) == ("d32x1-e2g2s1", [SHORT, MIDDLE, LONG])
    assert [run.shared_steps for run in unit.runs] == [8, 13, 26]
    assert unit.own_tokens() == {SHORT: 10 * 64, MIDDLE: (16 - 8) * 64, LONG: (32 - 13) * 64}
    per_token = runs[0].flops // runs[0].tokens
    assert own_costs(runs)[LONG] == (19 * 64, 19 * 64 * per_token)
    assert own_costs([run for run in runs if run.id == LONG])[LONG] == (2048, 2048 * per_token)


def test_without_wsd_every_run_is_a_unit(grid_path):
    runs = grid_runs(load_grid(grid_path))
    assert [unit.id for unit in units(runs)] == [run.id for run in runs]
    assert all(own_costs(runs)[run.id] == (run.tokens, run.flops) for run in runs)


def test_warm_up_and_batch_are_the_same_for_all_of_a_trunk(grid_path):
    trains = [run.recipe.train.model_dump(exclude={"steps"}) for run in grid_runs(load_grid(grid_path, WSD))]
    assert trains[0] == trains[1] == trains[2]
    assert trains[0]["warmup_steps"] == 1


@pytest.mark.parametrize("name", [SHORT, MIDDLE])
def test_a_branch_is_what_the_run_would_be_alone(forked_sweep, shared, tmp_path, name):
    forked_sweep(tmp_path, *WSD, only=(name,))
    assert losses(tmp_path)[name] == losses(shared)[name]


def test_what_is_saved_on_the_way_is_gone_at_the_end(shared):
    assert not list(shared.glob("runs/*/checkpoints/*"))


def test_a_killed_trunk_goes_on_to_the_same_rows(forked_sweep, shared, tmp_path):
    """Interrupted on the trunk, then during a decay, then killed where the next run begins."""
    begun = []

    def interrupt_where(pattern):
        def hear(event):
            if event["event"] == "begun":
                begun[:] = [event["process"]]
            elif event["event"] == "started" and begun:
                end = time.monotonic() + 60
                while not any(path.stat().st_size for path in tmp_path.glob(pattern)):
                    assert time.monotonic() < end
                    time.sleep(0.001)
                os.kill(begun.pop(), signal.SIGINT)

        return hear

    first = forked_sweep(tmp_path, *WSD, slow=0.1, hear=interrupt_where("runs/d32x1-e2g2s1/metrics.jsonl"))
    assert first["failed"] == []
    assert len(first["left"]) >= 2
    second = forked_sweep(tmp_path, *WSD, slow=0.1, hear=interrupt_where("runs/*-t*/metrics.jsonl"))
    assert second["failed"] == []
    assert second["left"]

    def kill(event):
        if event["event"] == "begun":
            begun[:] = [event["process"]]
        elif event.get("id") == LONG:
            os.kill(begun[0], signal.SIGKILL)

    assert forked_sweep(tmp_path, *WSD, hear=kill)["killed"]
    assert len(forked_sweep(tmp_path, *WSD)["finished"]) == 3
    assert losses(tmp_path) == losses(shared)


def test_a_trunk_that_has_gone_past_a_branch_begins_again(forked_sweep, shared, tmp_path):
    def interrupt(event):
        if event["event"] == "begun":
            process.append(event["process"])
        elif event["event"] == "started":
            end = time.monotonic() + 60
            while not list(tmp_path.glob("runs/d32x1-e2g2s1/checkpoints/step-00000010")):
                assert time.monotonic() < end
                time.sleep(0.001)
            os.kill(process[0], signal.SIGINT)

    process: list[int] = []
    forked_sweep(tmp_path, *WSD, only=(LONG,), hear=interrupt)  # it may be faster than the signal
    assert len(forked_sweep(tmp_path, *WSD)["finished"]) == 3
    assert losses(tmp_path) == losses(shared)


def test_a_trunk_that_goes_wrong_is_the_failure_of_all_its_runs(forked_sweep, tmp_path):
    ended = forked_sweep(tmp_path, *WSD, "blocks.all.rates=[1e20]")
    assert sorted(ended["failed"]) == sorted(f"{name}-rate1e20" for name in (SHORT, MIDDLE, LONG))
    assert ended["left"] == []
