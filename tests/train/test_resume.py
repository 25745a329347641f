"""The promise of train: a stopped run resumes bit for bit, with the same recipe and no other."""

import json
import shutil
import signal

import pytest
import torch

from mobilemoe.checkpoint import Checkpoint
from mobilemoe.checkpoint.run_folder import step_folder, step_folders
from mobilemoe.data import loader as loader_module
from mobilemoe.errors import ConfigError, DataError, ModelNotFoundError, TrainError
from mobilemoe.train import step as step_module
from mobilemoe.train.interrupts import StopRequest
from mobilemoe.train.loop import Trainer, train
from mobilemoe.train.metrics import MetricsLog, read_metrics
from mobilemoe.train.parallel.distributed import World
from mobilemoe.train.recipe import Recipe
from train_runs import assert_same, assert_whole, leftovers, rows

pytest_plugins = ["train_runs"]
pytestmark = pytest.mark.usefixtures("quick")


# ---- stopped and gone on


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(stop, precision, recipe, unbroken, stop_in, tmp_path):
    override, run = f"train.precision={precision}", tmp_path / "run"
    stop_in(stop)
    result = train(recipe(override), run)
    assert (result.finished, result.steps, result.checkpoint) == (False, stop, step_folder(run, stop))
    assert_whole(run)
    result = train(recipe(override), run)
    assert (result.finished, result.steps) == (True, 10)
    assert_same(run, unbroken(override))


def test_a_run_may_be_stopped_at_every_single_step(recipe, unbroken, stop_in, tmp_path):
    for step in range(1, 10):
        stop_in(step, signal.SIGTERM)
        assert not train(recipe(), tmp_path / "run").finished
    train(recipe(), tmp_path / "run")
    assert_same(tmp_path / "run", unbroken())


def test_a_finished_run_is_left_as_it_is(recipe, unbroken):
    before = {path: path.stat().st_mtime_ns for path in step_folders(unbroken())[-1].iterdir()}
    result = train(recipe(), unbroken())
    assert (result.finished, result.steps, result.loss) == (True, 10, rows(unbroken())[-1]["loss"])
    assert {path: path.stat().st_mtime_ns for path in step_folders(unbroken())[-1].iterdir()} == before


@pytest.mark.parametrize("late", range(12))
def test_an_interrupt_between_any_two_lines_saves_the_last_step(late, recipe, tmp_path):
    class Interrupted(StopRequest):
        """Not made the first `late` times that the loop looks."""

        looks = 0

        @property
        def made(self):
            self.looks += 1
            return self.looks > late

        @made.setter
        def made(self, value): ...

    asked = recipe("train.steps=8")
    trainer = Trainer(asked, tmp_path / "run", World(0, 1, torch.device("cpu")))
    if late == 0:
        with pytest.raises(TrainError, match="interrupted before its first step: nothing is saved"):
            trainer.run_steps(Interrupted())
        return
    result = trainer.run_steps(Interrupted())
    assert result.checkpoint == step_folder(tmp_path / "run", result.steps)
    assert len(rows(tmp_path / "run")) == result.steps


def test_no_more_checkpoints_are_kept_than_asked_for(recipe, tmp_path):
    train(recipe("train.checkpoint_every=1", "train.keep_checkpoints=3", "train.steps=6"), tmp_path / "run")
    assert [path.name for path in step_folders(tmp_path / "run")] == [f"step-0000000{n}" for n in (4, 5, 6)]
    assert leftovers(tmp_path / "run") == []


def test_a_loss_that_is_no_number_stops_the_run_and_the_last_checkpoint_stands(recipe, unbroken, tmp_path, monkeypatch):
    shutil.copytree(unbroken(), tmp_path / "run")  # first: it may be made only now
    real = step_module.cross_entropy_sum
    monkeypatch.setattr(step_module, "cross_entropy_sum", lambda *args: real(*args) * float("nan"))
    shutil.rmtree(step_folder(tmp_path / "run", 10))
    with pytest.raises(TrainError, match="step 9 gave loss nan"):
        train(recipe(), tmp_path / "run")
    assert [path.name for path in step_folders(tmp_path / "run")] == ["step-00000008"]
    monkeypatch.undo()
    monkeypatch.setattr(loader_module, "READ_AHEAD", 8)
    train(recipe(), tmp_path / "run")
    assert_same(tmp_path / "run", unbroken())


# ---- metrics


@pytest.mark.parametrize("tail", ["", '{"step": 3, "lo', '{"step": 3}', '{"step": 4}\n{"step": 5}\n', "\0\0\0"])
def test_metrics_forget_what_came_after_the_checkpoint_or_was_cut_short(tail, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n' + tail)
    log = MetricsLog(path, 2)
    log.write({"step": 3, "loss": 0.1})
    log.close()
    assert read_metrics(path) == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 0.1}]


# ---- which recipe goes on


@pytest.mark.parametrize(
    ("override", "error", "words"),
    [
        ("model.changes.num_hidden_layers=3", TrainError, "is of another model than the recipe's"),
        ("model.changes.rope_theta=10000", TrainError, "is of another model than the recipe's"),
        ("data.seed=2", DataError, "seed was 1 and is 2"),
        ("train.sequence_length=64", DataError, "sequence_length was 32 and is 64"),
        ("model.preset=huge", ConfigError, "tiny.toml: there is no preset 'huge'"),
        ("tokenizer.path=missing", ModelNotFoundError, "there is no folder missing"),
        ("data.path=missing", DataError, "does not exist"),
        ("model.changes.vocab_size=100", ConfigError, "vocab_size is only 100"),
    ],
)
def test_checkpoints_are_of_one_model_and_one_text(override, error, words, recipe, unbroken, tmp_path):
    shutil.copytree(unbroken(), tmp_path / "run")
    (tmp_path / "run" / "recipe.json").unlink()  # which would be compared first
    with pytest.raises(error) as caught:
        train(recipe(override, "train.steps=12"), tmp_path / "run")
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("change", ["layer_types=['full_attention', 'full_attention']", "eos_token_id=[3, 4]"])
def test_a_recipe_that_spells_lists_out_can_be_gone_on_with(change, recipe, stop_in, tmp_path):
    changed = recipe(f"model.changes.{change}", "train.steps=4")
    stop_in(2)
    assert not train(changed, tmp_path / "run").finished
    assert train(changed, tmp_path / "run").finished


def test_a_run_keeps_its_recipe_and_its_checkpoints_are_models(recipe, unbroken):
    assert Recipe.model_validate(json.loads((unbroken() / "recipe.json").read_text())) == recipe()
    with Checkpoint.open(step_folders(unbroken())[-1]) as checkpoint:
        assert checkpoint.config.hidden_size == 32
        assert not checkpoint.config.is_quantized
