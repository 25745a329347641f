"""Promises of a pipeline: four stages, each from the last; finished ones are skipped, a started one is resumed."""

import importlib.util
import json
import signal

import pytest
import torch

from cli_calls import RECIPE
from mobilemoe.checkpoint import Checkpoint
from mobilemoe.checkpoint.run_folder import step_folders
from mobilemoe.errors import ConfigError, TrainError
from mobilemoe.train import loop as loop_module
from mobilemoe.train import pipeline as pipeline_module
from mobilemoe.train.metrics import read_metrics
from mobilemoe.train.pipeline import STAGES, Stage, check_origin, pipeline
from mobilemoe.train.recipe import load_recipe
from train_runs import RECIPE as TINY

pytest_plugins = ["train_runs"]
pytestmark = pytest.mark.usefixtures("quick")
WITH_QAT = importlib.util.find_spec("mobilemoe.train.qat") is not None
SHORT = ["--set", "train.steps=4", "--set", "train.warmup_steps=2"]


@pytest.fixture
def micro(tmp_path, monkeypatch):
    """A working folder with the recipes of a pipeline of seconds, `micro`."""
    (tmp_path / "recipes").mkdir()
    for number, stage in enumerate(STAGES):
        text = TINY.replace('name = "tiny"', f'name = "micro-{stage}"')
        text = text.replace("intermediate_size = 16", "intermediate_size = 32")  # INT4's groups
        if number:
            model = text[text.index("[model]") : text.index("[data]")]
            text = text.replace(model, f'[model]\ninit = "runs/micro-{STAGES[number - 1]}"\n\n')
        if stage == "qat":
            text += "\n[qat]\ngroup_axis = 'in'\n"
        (tmp_path / "recipes" / f"micro-{stage}.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mobilemoe.train.device.MATMUL_SECONDS", 0.01)
    return tmp_path


def weights(folder) -> torch.Tensor:
    with Checkpoint.open(folder) as checkpoint:
        return torch.from_numpy(checkpoint.weight("model.embed_tokens.weight").copy())


# Which runs


def test_each_stage_starts_from_the_run_before_it_wherever_that_is(micro):
    stages = pipeline("micro", out=micro / "else where")
    assert [stage.run for stage in stages] == [micro / "else where" / f"micro-{stage}" for stage in STAGES]
    assert [stage.recipe.model.init for stage in stages] == [None, *(str(stage.run) for stage in stages[:-1])]
    assert len({stage.config for stage in stages}) == 1
    named = pipeline("micro", ("pretrain.name=first",))
    assert named[1].recipe.model.init == "runs/first"


def test_a_stage_that_is_distilled_from_its_parent_is_so_wherever_that_is(micro):
    path = micro / "recipes" / "micro-qat.toml"
    path.write_text(path.read_text() + 'distill_from = "runs/micro-sft"\n')
    stages = pipeline("micro", out=micro / "else where")
    assert stages[3].recipe.qat.distill_from == stages[3].recipe.model.init == str(stages[2].run)
    path.write_text(path.read_text().replace('distill_from = "runs/micro-sft"', 'distill_from = "teacher"'))
    assert pipeline("micro", out=micro / "else where")[3].recipe.qat.distill_from == "teacher"


def test_an_override_goes_to_all_stages_or_to_the_one_it_names(micro):
    stages = pipeline(
        "micro", ("train.steps=7", "sft.train.steps=9", "pretrain.data.seed=5", "qat.qat.activations=none")
    )
    assert [stage.recipe.train.steps for stage in stages] == [7, 7, 9, 7]
    assert [stage.recipe.data.seed for stage in stages] == [5, 1, 1, 1]
    assert stages[3].recipe.qat.activations == "none"


def test_the_table_qat_is_that_of_its_stage(micro):
    stages = pipeline("micro", ("qat.group_axis=out", "qat.train.steps=3"))
    assert [stage.recipe.qat for stage in stages[:3]] == [None] * 3
    assert stages[3].recipe.qat.group_axis == "out"
    assert [stage.recipe.train.steps for stage in stages] == [10, 10, 10, 3]


def test_a_stage_may_start_elsewhere(micro, tiny_folder):
    stages = pipeline("micro", (f"sft.model.init={tiny_folder}",))
    assert stages[2].recipe.model.init == str(tiny_folder)
    assert stages[2].config == stages[3].config != stages[1].config


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("sft.steps=3",), r"micro-sft\.toml: steps is 3: there is no entry of this name"),
        (("name=same",), "two stages of micro have the same name"),
        (("train.steps=0",), r"micro-pretrain\.toml: train\.steps is 0: "),
    ],
)
def test_a_wrong_override_is_one_sentence(micro, overrides, words):
    with pytest.raises(ConfigError, match=words):
        pipeline("micro", overrides)


def test_a_missing_recipe_is_named(micro, fails):
    (micro / "recipes" / "micro-sft.toml").unlink()
    line = fails(1, "train", "--pipeline", "micro")
    assert "there is no recipes/micro-sft.toml: a pipeline needs a recipe for each of pretrain, midtrain, sft" in line
    assert not (micro / "runs").exists()


@pytest.mark.parametrize("arguments", [[], [RECIPE, "--pipeline", "nano"]])
def test_a_recipe_or_a_pipeline_is_given(fails, arguments):
    assert "train takes a RECIPE or --pipeline NAME" in fails(2, "train", *arguments)


# Where a stage starts


def test_a_run_to_start_from_must_be_there_and_finished(micro, recipe):
    later = load_recipe(micro / "recipes" / "micro-midtrain.toml")
    with pytest.raises(TrainError, match="micro-midtrain starts from runs/micro-pretrain, which does not exist"):
        check_origin(later)
    run = micro / "runs" / "micro-pretrain"
    loop_module.train(recipe("train.steps=2"), run)
    check_origin(later)
    (run / "recipe.json").write_text(json.dumps({"train": {"steps": 5}}))
    with pytest.raises(TrainError, match="has done 2 of 5 steps: finish that run first, or name one of its"):
        Stage.of(later, micro / "runs" / "next")
    step = step_folders(run)[-1]
    check_origin(load_recipe(micro / "recipes" / "micro-midtrain.toml", (f"model.init={step}",)))
    (run / "recipe.json").write_text("{}")
    with pytest.raises(TrainError, match="is not a recipe that a run has written"):
        check_origin(later)


# Running it


@pytest.mark.skipif(not WITH_QAT, reason="mobilemoe.train.qat is not there")
def test_four_stages_run_one_after_the_other_and_are_not_run_again(micro, mobilemoe_cli):
    out = micro / "models"
    call = ["train", "--pipeline", "micro", "--out", out, *SHORT, "--set", "sft.train.learning_rate=0.5"]
    ended = mobilemoe_cli(*call)
    assert ended.status == 0, ended.err
    assert ended.out.count("memory on each of 1 x CPU") == 4
    assert ended.out.splitlines()[-1] == f"next: mobilemoe quantize {out / 'micro-qat'} OUT --group-axis in"
    rates = {}
    for stage in STAGES:
        rows = read_metrics(out / f"micro-{stage}" / "metrics.jsonl")
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
        rates[stage] = [row["learning_rate"] for row in rows]
    # Every stage warms up again.
    assert rates["midtrain"] == pytest.approx([0.005, 0.01, 0.01, 0.005])
    assert rates["sft"][:2] == [0.25, 0.5]
    again = mobilemoe_cli(*call, "--json")
    assert (again.status, again.err) == (0, "")
    assert [stage["finished"] for stage in again.json["stages"]] == [True] * 4
    assert [stage["steps"] for stage in again.json["stages"]] == [4] * 4


def test_a_stage_has_the_weights_of_the_one_before(micro):
    first, second = pipeline("micro", ("train.steps=1", "midtrain.train.learning_rate=1e-9"))[:2]
    first.train()
    second.train()
    before, after = (weights(step_folders(stage.run)[-1]) for stage in (first, second))
    assert torch.allclose(before, after, atol=1e-7)
    assert weights(step_folders(first.run)[-1]).std() > 1e-3


def test_ctrl_c_saves_and_the_same_command_goes_on(micro, mobilemoe_cli, monkeypatch):
    real = loop_module.MetricsLog.write
    seen = []

    def write(self, row):
        real(self, row)
        seen.append((self.path.parent.name, row["step"]))
        if seen[-1] == ("micro-midtrain", 2):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(loop_module.MetricsLog, "write", write)
    call = ["train", "--pipeline", "micro", *SHORT]
    ended = mobilemoe_cli(*call)
    assert ended.status == 0
    # The signal comes while step 2 is reported, when step 3 is already decided on.
    assert "saved after 3 steps: runs/micro-midtrain" in ended.out.splitlines()[-1]
    assert not (micro / "runs" / "micro-sft").exists()
    seen.clear()
    # As far as fine-tuning: quantisation-aware training may not be there.
    stages = pipeline("micro", ("train.steps=4", "train.warmup_steps=2"))
    assert [stage.finished for stage in stages] == [True, False, False, False]
    assert stages[1].estimate().speed_source == "as in the run's last steps"
    assert [stage.train().finished for stage in stages[1:3]] == [True, True]
    assert seen == [("micro-midtrain", 4), *(("micro-sft", step) for step in range(1, 5))]


def test_a_pipeline_is_planned_before_any_run_is_there(micro, mobilemoe_cli):
    ended = mobilemoe_cli("train", "--pipeline", "micro", "--plan", "--set", "midtrain.train.steps=3", "--json")
    plans = ended.json["stages"]
    assert [plan["name"] for plan in plans] == [f"micro-{stage}" for stage in STAGES]
    assert [plan["steps"] for plan in plans] == [10, 3, 10, 10]
    assert not (micro / "runs").exists()


def test_of_several_processes_one_speaks(micro, mobilemoe_cli, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert mobilemoe_cli("train", "--pipeline", "micro", "--plan").out == ""
    assert mobilemoe_cli("train", "--pipeline", "micro", "--plan", "--json").out == ""


def test_a_stage_that_fails_frees_nothing_that_might_wait_for_other_processes(micro, monkeypatch):
    calls = []

    def fail(recipe, run):
        calls.append("trained")
        raise TrainError("process 1 stopped the training")

    monkeypatch.setattr(pipeline_module, "train", fail)
    monkeypatch.setattr(pipeline_module.gc, "collect", lambda: calls.append("freed"))
    with pytest.raises(TrainError, match="process 1"):
        pipeline("micro")[0].train()
    assert calls == ["freed", "trained"]
