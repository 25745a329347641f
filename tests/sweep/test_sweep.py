"""The promise of sweep: each run once, in the stated order, its row kept whatever happens to the others or to us."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mobilemoe import accounting
from mobilemoe.data.encoding import open_tokenizer
from mobilemoe.data.mixture import build_sources
from mobilemoe.data.sources import is_held_out
from mobilemoe.errors import ConfigError, DataError, MachineError, TrainError, UsageError
from mobilemoe.sweep.crew import choose, sweep
from mobilemoe.sweep.faults import machine_fault
from mobilemoe.sweep.grid import HeldOut, load_grid
from mobilemoe.sweep.heldout import read_held_out
from mobilemoe.sweep.runs import grid_runs
from mobilemoe.sweep.table import add_row, claimed, read_rows, remove_rows
from places import RECIPES

pytest_plugins = ["sweep_runs"]

CLOCK = ("seconds", "tokens_per_second", "code")  # columns that another call may fill otherwise


@pytest.fixture(scope="module")
def grid(grid_path):
    return lambda *overrides: load_grid(grid_path, overrides)


@pytest.fixture(scope="module")
def done(forked_sweep, tmp_path_factory):
    """The folder of a sweep that nothing stopped, by two workers, and how it ended."""
    out = tmp_path_factory.mktemp("done") / "sweep"
    return out, forked_sweep(out, processes=2)


def losses(out: Path) -> dict[str, dict[str, str]]:
    """The rows of runs.csv by id, without what a clock says."""
    rows = read_rows(out / "runs.csv")
    return {row["id"]: {name: row[name] for name in row if name not in CLOCK} for row in rows}


# The plan.


def test_a_block_is_the_product_of_its_axes_and_each_run_is_there_once(grid):
    block = "{sizes=[{hidden_size=32}],tokens=[256],experts=[1,2,4],granularity=[1,2,4],shared=[0,1]}"
    runs = grid_runs(grid(f"blocks.all={block}", f"blocks.again={block}"))
    assert {(run.experts, run.granularity, run.shared) for run in runs} == {
        (1, 1, 0),
        *((e, g, s) for e in (2, 4) for g in (1, 2, 4) for s in (0, 1) if not (s and g % 2)),
    }
    assert len({run.id for run in runs}) == len(runs) == 11
    assert {run.blocks for run in runs} == {("all", "again")}


def test_the_architecture_is_the_familys_and_the_recipe_describes_it(grid):
    run = next(run for run in grid_runs(grid()) if run.experts == 2)
    config = run.config
    assert (config.num_local_experts, config.num_experts_per_tok) == (2 * 2 - 1, 1)
    assert (config.intermediate_size, config.intermediate_size_mlp) == (64, 64)
    assert run.columns["n_active_no_embedding"] == accounting.active_parameters(config) - 16_384 * 32
    assert run.columns["n_total"] == accounting.total_parameters(config)
    dense = next(run for run in grid_runs(grid()) if run.experts == 1)
    assert dense.config.ffn_type == "dense"
    assert dense.columns["n_total"] == dense.columns["n_active"]


def test_a_router_that_chooses_one_expert_is_weighted_by_its_own_score(grid):
    by_knobs = {(run.experts, run.granularity): run.config for run in grid_runs(grid("blocks.all.granularity=[2,4]"))}
    assert not by_knobs[2, 2].norm_topk_prob  # over its own sum it would be 1, and the router would never learn
    assert by_knobs[2, 4].norm_topk_prob


def test_a_size_in_parameters_gives_the_same_width_to_every_architecture(grid):
    sizes = "blocks.all.sizes=[{parameters=3e6}]"
    runs = grid_runs(grid(sizes, "blocks.all.experts=[1,8,32]", "blocks.all.granularity=[2,16]"))
    assert {run.config.hidden_size for run in runs} == {192}
    assert runs[0].columns["n_active_no_embedding"] == pytest.approx(3e6, rel=0.1)


def test_batch_and_learning_rate_follow_the_rules(grid):
    base = ("train.batch_size=32", "train.steps=100", "train.warmup_steps=10", "train.final_learning_rate=1e-3")
    reference = 32 * 100 * 32  # tokens
    wide = "blocks.all={sizes=[{hidden_size=64},{hidden_size=128}],tokens=[%d,%d],rates=[1,2]}"
    runs = grid_runs(grid(*base, wide % (reference, 4 * reference)))
    by = {(run.config.hidden_size, run.recipe.train.steps, run.rate): run.recipe.train for run in runs}
    same = by[64, 100, 1.0]  # preset micro is 64 wide: this is the reference run
    assert (same.batch_size, same.learning_rate, same.warmup_steps) == (32, 1e-2, 10)
    longer = by[64, 200, 1.0]
    assert (longer.batch_size, longer.warmup_steps) == (64, 20)
    assert longer.learning_rate == pytest.approx(1e-2 * 2**0.5, rel=1e-3)
    wider = by[128, 100, 2.0]
    assert wider.learning_rate == pytest.approx(2e-2 * 2**-0.75, rel=1e-3)
    assert wider.final_learning_rate == pytest.approx(2e-3 * 2**-0.75, rel=1e-3)
    for run in runs:
        assert run.tokens == pytest.approx(run.recipe.train.steps * run.recipe.train.batch_size * 32)


def test_a_seed_changes_weights_and_data_and_the_key(grid):
    one, two = grid_runs(grid("blocks.all={sizes=[{hidden_size=32}],tokens=[256],seeds=[0,3]}"))
    assert (one.recipe.train.seed + 3, one.recipe.data.seed + 3) == (two.recipe.train.seed, two.recipe.data.seed)
    assert one.key != two.key


def test_blocks_come_in_order_and_of_each_the_longest_training_first(grid):
    runs = grid_runs(grid("blocks.more={sizes=[{hidden_size=64}],tokens=[256,1024]}"))
    blocks = [run.blocks[0] for run in runs]
    assert blocks == sorted(blocks)
    for name in ("all", "more"):
        flops = [run.flops for run in runs if run.blocks[0] == name]
        assert flops == sorted(flops, reverse=True)


def test_runs_are_held_out_by_number_or_by_compute(grid):
    runs = grid_runs(grid())
    most = sorted(run.compute for run in runs)
    assert {run.compute for run in grid_runs(grid("scaling.held_out=2")) if run.held_out} == {*most[-2:]}
    by_limit = [run for run in grid_runs(grid(f"scaling.held_out_above={most[1]}")) if run.held_out]
    assert sorted(run.compute for run in by_limit) == most[2:]
    assert runs[0].compute == 6 * accounting.active_parameters(runs[0].config) * runs[0].tokens


def test_the_sweep_of_ours_is_what_was_registered():
    runs = grid_runs(load_grid(RECIPES / "sweep" / "grid.toml"))
    law = [run for run in runs if "trunks" in run.blocks]
    assert {(run.experts, run.granularity, run.shared) for run in law} == {(1, 1, 0), (8, 8, 0)}
    assert len(law) == 48
    fitted = [run.compute for run in law if not run.held_out]
    assert len(fitted) == 22
    assert max(fitted) <= 3.75e15 < min(run.compute for run in law if run.held_out)
    assert max(run.compute for run in law) == pytest.approx(3.7e16, rel=0.02)
    assert max(run.tokens for run in runs) < 101e6  # within one epoch
    for run in runs:
        config = run.config
        assert (config.head_dim, config.num_key_value_heads) == (64, config.num_attention_heads)
        assert run.batch_tokens == 16_384
        if config.is_moe:
            weight = config.routed_scaling_factor / config.num_experts_per_tok if config.norm_topk_prob else 1.0
            assert weight == 1.0
            assert config.norm_topk_prob == (config.num_experts_per_tok > 1)


def test_only_takes_ids_blocks_and_patterns(grid):
    both = grid("blocks.more={sizes=[{hidden_size=64}],tokens=[256]}")
    assert len(choose(both)) == 5
    assert {run.config.hidden_size for run in choose(both, ("more",))} == {64}
    assert {run.id for run in choose(both, ("d32x1-dense-t256", "*t512"))} == {
        *("d32x1-dense-t256", "d32x1-dense-t512", "d32x1-e2g2s1-t512")
    }
    with pytest.raises(UsageError, match="no run and no block 'less'"):
        choose(both, ("less",))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("blocks={}", "blocks is|blocks"),
        ("blocks.all.sizes=[{}]", "hidden_size or parameters"),
        ("blocks.all.tokens=[0]", r"blocks\.all\.tokens\.0 is 0"),
        ("blocks.all.shared=[2]", r"blocks\.all\.shared\.0 is 2"),
        ("blocks.all.width=[2]", r"blocks\.all\.width"),
        ("model={init='nano'}", "trains new models"),
        ("qat={}", "remove the tables"),
        ("train.schedule=wsd", "batch_exponent is 0.5, but runs of schedule 'wsd' share"),
        (
            "train={schedule='wsd',steps=4,batch_size=2,sequence_length=32,learning_rate=1,warmup_steps=4}",
            "warmup_steps",
        ),
        ("scaling.held_out=-1", r"scaling\.held_out is -1"),
    ],
)
def test_a_grid_that_cannot_be_says_which_entry_is_wrong(grid, override, message):
    with pytest.raises(ConfigError, match=message):
        grid(override)


def test_a_missing_or_broken_file_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_grid(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_grid(tmp_path / "bad.toml")


# What the runs are scored on.


def test_held_out_rows_are_whole_limited_and_weighted(grid):
    loaded = grid()
    tokenizer, template = open_tokenizer("nano")
    text = read_held_out(loaded.heldout, loaded.data, tokenizer, template, 32)
    assert {name: domain.share for name, domain in text.domains.items()} == pytest.approx({"books": 0.6, "code": 0.4})
    for domain in text.domains.values():
        assert domain.rows.tokens_T.shape == (8, 32)  # 256 tokens
        assert 1 < domain.bytes_per_target < 8
    again = read_held_out(loaded.heldout, loaded.data, tokenizer, template, 32)
    assert again.fingerprint == text.fingerprint
    longer = read_held_out(HeldOut(path=loaded.heldout.path, tokens=512), loaded.data, tokenizer, template, 32)
    assert longer.fingerprint != text.fingerprint
    np.testing.assert_array_equal(longer.domains["code"].rows.tokens_T[:8], text.domains["code"].rows.tokens_T)


def test_without_a_file_the_held_out_split_is_taken(grid):
    data = grid("data.holdout=0.3").data
    tokenizer, template = open_tokenizer("nano")
    text = read_held_out(HeldOut(tokens=64), data, tokenizer, template, 32)
    assert {domain.rows.tokens_T.shape for domain in text.domains.values()} == {(2, 32)}
    for name, domain in text.domains.items():  # each source's own first text
        source = build_sources(data, ".")[name]
        first = next(document for document in source.documents(0) if is_held_out(document, 0.3))
        shown = tokenizer.decode(domain.rows.tokens_T[0][1:].tolist())
        assert first.text.startswith(shown[:20]), name
    with pytest.raises(DataError, match="does not fill a row"):
        read_held_out(HeldOut(), data.model_copy(update={"holdout": 0.0}), tokenizer, template, 32)


# The tables.


def test_rows_are_added_replaced_and_removed(tmp_path):
    path = tmp_path / "rows.csv"
    add_row(path, {"id": "a", "key": "k", "loss": 1.5})
    add_row(path, {"id": "b", "key": "k", "loss": "one, two"})
    add_row(path, {"id": "a", "key": "k", "loss": 2})
    rows = [{"id": "b", "key": "k", "loss": "one, two"}, {"id": "a", "key": "k", "loss": "2"}]
    assert read_rows(path) == rows
    with pytest.raises(TrainError, match="other columns"):
        add_row(path, {"id": "c", "key": "k", "gain": 1})
    remove_rows(path, {"b"})
    assert [row["id"] for row in read_rows(path)] == ["a"]
    remove_rows(path, {"a"})
    assert read_rows(path) == []


def test_many_processes_lose_no_row(tmp_path):
    script = (
        "import sys; from mobilemoe.sweep.table import add_row; from pathlib import Path\n"
        "for n in range(20): add_row(Path(sys.argv[1]), {'id': sys.argv[2] + str(n), 'key': 'k'})"
    )
    children = [subprocess.Popen([sys.executable, "-c", script, tmp_path / "rows.csv", name]) for name in "ab"]
    assert [child.wait() for child in children] == [0, 0]
    assert {row["id"] for row in read_rows(tmp_path / "rows.csv")} == {f"{a}{n}" for a in "ab" for n in range(20)}


def test_a_claim_is_one_processs_alone(tmp_path):
    with claimed(tmp_path / "run" / ".claim") as first, claimed(tmp_path / "run" / ".claim") as second:
        assert (first, second) == (True, False)
    with claimed(tmp_path / "run" / ".claim") as again:
        assert again


# The sweep.


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

    first = forked_sweep(tmp_path, hear=interrupt)
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

    def kill(event):
        if event.get("id") == "d32x1-dense-t256" and event["event"] == "started":
            os.kill(event["worker"], signal.SIGSEGV)

    ended = forked_sweep(tmp_path, *overrides, hear=kill)
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
    """A file that cannot be written, as on a full disk; then a process that was killed, as where memory runs out."""
    (tmp_path / "documents").write_text("in the way")
    stopped = forked_sweep(tmp_path, processes=2)
    assert "the same command goes on from there" in stopped["error"]
    assert "documents" in stopped["error"]
    (tmp_path / "documents").unlink()

    def kill(event):
        if event["event"] == "started":
            os.kill(event["worker"], signal.SIGKILL)

    killed = forked_sweep(tmp_path, hear=kill)
    assert "was killed, as where memory runs out" in killed["error"]
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
            os.kill(event["worker"], signal.SIGKILL)

    ended = forked_sweep(tmp_path, only=(name, "d32x1-dense-t512"), hear=finish)
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
