"""Promises of trunks: runs that share one are what each would be by itself, for less, whatever interrupts them."""

import os
import signal
import time

import pytest

from mobilemoe.sweep.grid import load_grid
from mobilemoe.sweep.rates import best_rates, fit_rule
from mobilemoe.sweep.runs import grid_runs
from mobilemoe.sweep.table import read_rows
from mobilemoe.sweep.units import own_costs, units

pytest_plugins = ["sweep_runs"]

# Decays of 2, 3 and 6 steps begin at steps 8, 13 and 26 of one trunk.
WSD = (
    *("train.schedule=wsd", "scaling.batch_exponent=0", "train.checkpoint_every=5", "train.keep_checkpoints=1"),
    *("blocks.all.tokens=[640,1024,2048]", "blocks.all.experts=[2]"),
)
SHORT, MIDDLE, LONG = (f"d32x1-e2g2s1-t{tokens}" for tokens in (640, 1024, 2048))
CLOCK = ("seconds", "tokens_per_second", "code")


def losses(out):
    rows = read_rows(out / "runs.csv")
    return {row["id"]: {name: row[name] for name in row if name not in CLOCK} for row in rows}


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

    first = forked_sweep(tmp_path, *WSD, hear=interrupt_where("runs/d32x1-e2g2s1/metrics.jsonl"))
    assert first["failed"] == []
    assert len(first["left"]) >= 2
    second = forked_sweep(tmp_path, *WSD, hear=interrupt_where("runs/*-t*/metrics.jsonl"))
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


# The best learning rate.


def row(width, rate, loss, experts=1, factor=1.0):
    knobs = {"experts": experts, "granularity": 1, "shared": 0, "hidden_size": width, "tokens": 1000}
    return {name: str(value) for name, value in (knobs | {"learning_rate": rate, "rate": factor, "loss": loss}).items()}


def test_the_best_rate_is_the_lowest_point_of_a_parabola():
    import math

    def loss(rate, best):
        return 3 + 0.1 * math.log(rate / best) ** 2

    rows = []
    for experts, shift in ((1, 1.0), (8, 1.2)):
        for width in (128, 256, 512):
            best = shift * 4e-3 * (256 / width) ** 0.7
            rule = 3e-3 * (256 / width) ** 0.7
            rows += [row(width, rule * f, loss(rule * f, best), experts, f) for f in (0.5, 1, 2)]
    found = best_rates(rows)
    assert [(best.arm, best.hidden_size) for best in found[:3]] == [("dense", 128), ("dense", 256), ("dense", 512)]
    assert found[1].rate == pytest.approx(4e-3)
    assert found[1].inside
    assert found[1].gain == pytest.approx(0.1 * math.log(4 / 3) ** 2)
    rule = fit_rule(found[:3], 256, 0.5)
    assert (rule.learning_rate, rule.width_exponent) == (pytest.approx(4e-3, rel=1e-3), pytest.approx(0.7, abs=1e-3))
    assert fit_rule(found, 256, 0.5).spread == pytest.approx(1.2**0.5)
    assert fit_rule(found[1:2], 256, 0.5).width_exponent == 0.5


def test_an_end_of_the_rates_is_said_to_be_one():
    (best,) = best_rates([row(256, rate, 3 + rate) for rate in (0.1, 0.2, 0.4)])
    assert (best.rate, best.inside) == (pytest.approx(0.1), False)
