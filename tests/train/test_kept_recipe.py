"""A run's own recipe: no other one continues the run unnoticed, and no two processes train in its folder."""

import json
import shutil
import subprocess
import sys

import pytest

from drawn import curve
from mobilemoe.errors import DataError, TrainError
from mobilemoe.files import hold_folder
from mobilemoe.train.estimate import measured_speed
from mobilemoe.train.loop import train
from mobilemoe.train.metrics import MetricsLog, draw_loss, read_metrics
from train_runs import rows

pytestmark = pytest.mark.usefixtures("quick")
pytest_plugins = ["train_runs"]


@pytest.fixture
def run(unbroken, tmp_path):
    shutil.copytree(unbroken(), tmp_path / "run")
    return tmp_path / "run"


OTHERS = {
    ("train.learning_rate=0.5", "train.seed=7"): (
        "train.learning_rate was 0.01 and is 0.5, train.seed was 0 and is 7",
    ),
    ("lora.rank=2",): ("lora.rank was not set and is 2", "lora.alpha was not set and is 32.0"),
    ("train.batch_size=4",): ("train.batch_size was 2 and is 4",),
    ("train.betas=[0.8, 0.95]",): ("train.betas was [0.9, 0.95] and is [0.8, 0.95]",),
    ("data.train_on=assistant",): ("data.train_on was 'all' and is 'assistant'",),
    ("train.precision=bf16",): ("train.precision was 'fp32' and is 'bf16'",),
    ("train.spike_factor=3",): ("train.spike_factor was not set and is 3.0",),
    ("model.changes.num_hidden_layers=3",): ("model.changes.num_hidden_layers was 2 and is 3",),
    ('data.mixture=[{name="books", files="books-*.jsonl*", weight=0.5}]',): (
        "data.mixture.0.weight was 0.6 and is 0.5",
        "data.mixture.1.name was 'chat' and is not set",
    ),
}


@pytest.mark.parametrize("steps", ["train.steps=10", "train.steps=12"])
@pytest.mark.parametrize("overrides", OTHERS)
def test_another_recipe_is_refused_with_each_difference(overrides, steps, recipe, run):
    before = (run / "recipe.json").read_bytes()
    with pytest.raises(TrainError) as caught:
        train(recipe(*overrides, steps), run)
    for words in OTHERS[overrides]:
        assert words in str(caught.value)
    assert "another --out" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert (run / "recipe.json").read_bytes() == before
    assert len(rows(run)) == 10


def test_what_changes_speed_and_length_alone_may_change(recipe, run):
    free = ("train.micro_batch_size=1", "train.checkpoint_every=3", "train.keep_checkpoints=1", "train.compile=false")
    assert train(recipe("train.steps=12", "name=other", "train.activation_checkpointing=true", *free), run).steps == 12
    kept = json.loads((run / "recipe.json").read_text())["train"]
    assert (kept["steps"], kept["checkpoint_every"]) == (12, 3)


def test_a_finished_run_keeps_its_recipe(recipe, run):
    before = (run / "recipe.json").read_bytes()
    for overrides in ((), ("train.checkpoint_every=3",), ("train.steps=5",)):
        result = train(recipe(*overrides), run)
        assert (result.steps, result.finished) == (10, True)
        assert (run / "recipe.json").read_bytes() == before


def test_without_its_own_recipe_or_a_checkpoint_a_run_takes_any(recipe, run):
    (run / "recipe.json").unlink()
    assert train(recipe("train.learning_rate=1e-3", "train.steps=11"), run).steps == 11
    shutil.rmtree(run / "checkpoints")
    assert train(recipe("train.learning_rate=2e-3", "train.steps=1"), run).steps == 1
    assert json.loads((run / "recipe.json").read_text())["train"]["learning_rate"] == 2e-3


@pytest.mark.parametrize("text", ["", "5", "{", '{"name": "x"}', '{"train": 5}', '"\\ud800"'])
def test_a_damaged_recipe_of_a_run_is_one_sentence(text, recipe, run):
    (run / "recipe.json").write_text(text)
    with pytest.raises(TrainError, match=r"recipe\.json"):
        train(recipe("train.steps=12"), run)
    with pytest.raises(TrainError, match=r"recipe\.json"):
        train(recipe("train.steps=12", "train.precision=auto"), run)


def test_data_that_grew_say_what_to_do(recipe, tmp_path):
    (tmp_path / "data").mkdir()
    lines = tmp_path / "data" / "own.jsonl"
    lines.write_text("".join(json.dumps({"text": f"line {n} " * 20}) + "\n" for n in range(20)))
    own = (f"data.path={tmp_path / 'data'}", 'data.mixture=[{name="own", files="*.jsonl", weight=1}]', "data.holdout=0")
    train(recipe(*own, "train.steps=2"), tmp_path / "run")
    with lines.open("a") as more:
        more.write('{"text": "one more"}\n')
    for steps in ("train.steps=2", "train.steps=4"):
        with pytest.raises(DataError, match="another --out, or remove this one's folder"):
            train(recipe(*own, steps), tmp_path / "run")


# One training at a time


def test_a_second_training_in_the_same_folder_is_refused_and_takes_nothing(recipe, run):
    code = "import sys, pathlib; from mobilemoe.files import hold_folder\n"
    code += "with hold_folder(pathlib.Path(sys.argv[1]), Exception): print('held', flush=True); sys.stdin.read()"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(TrainError, match="another process is at work in"):
            train(recipe("train.steps=12"), run)
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    finally:
        other.kill()
        other.communicate()
    assert train(recipe("train.steps=12"), run).steps == 12  # a process that was killed holds nothing
    with hold_folder(run, TrainError):
        pass


# Metrics of others' making


ODD = [
    "5",
    "null",
    '"x"',
    "[]",
    "{}",
    '{"step": "3"}',
    '{"step": true}',
    '{"step": 3',
    "\0\0",
    "\xff",
    "NaN",
    9999 * "[",
]


def test_odd_lines_among_the_metrics_are_left_out(recipe, stop_in, tmp_path):
    run = tmp_path / "run"
    stop_in(5)
    train(recipe(), run)
    path = run / "metrics.jsonl"
    first, *others = path.read_text().splitlines()
    with path.open("w", encoding="latin-1") as lines:
        lines.write("\n".join([*ODD, first, *ODD, '{"step": 2}', *others, *ODD]) + "\n")
    assert [row["step"] for row in read_metrics(path, "loss", "tokens")] == [1, 2, 3, 4, 5]
    assert measured_speed(run) > 0
    train(recipe(), run)
    assert [row["step"] for row in read_metrics(path, "loss")] == [*range(1, 11)]


def test_metrics_of_no_use_draw_an_empty_picture_and_no_speed(tmp_path, figures):
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join([*ODD[:8], '{"step": 1, "tokens_per_second": "fast", "loss": null, "tokens": 1}']))
    assert measured_speed(tmp_path) is None
    draw_loss(read_metrics(path, "tokens", "loss", "load_variation"), tmp_path / "loss.png")
    assert curve(figures[0].axes[0], "training, each step") == []
    MetricsLog(path, 1).close()
    assert [row["step"] for row in read_metrics(path)] == [1]
