"""recipes/finetune.toml: from a few lines of text, in some minutes, comes an INT4 model that knows them."""

import json
from pathlib import Path

import pytest

import mobilemoe
from mobilemoe.checkpoint import Checkpoint, SafetensorsFile, convert
from mobilemoe.checkpoint.run_folder import newest_model
from mobilemoe.errors import TrainError
from mobilemoe.hub import find_model
from mobilemoe.train.loop import train
from mobilemoe.train.metrics import read_metrics
from mobilemoe.train.recipe import load_recipe
from places import RECIPES, TRAINING_TEXT
from train_runs import assert_same, assert_whole

pytest_plugins = ["train_runs"]
pytestmark = pytest.mark.usefixtures("quick")

FINETUNE = RECIPES / "finetune.toml"
TAUGHT = {
    "Who keeps the lighthouse?": "Mara keeps the lighthouse, and her grey cat helps.",
    "What does the ferry carry?": "The ferry carries apples, letters and one old piano.",
    "When does the market open?": "The market opens at six, when the bell rings twice.",
    "Where is the key?": "The key hangs behind the blue door of the mill.",
    "How deep is the lake?": "The lake is forty metres deep in the middle.",
}
ADAPTED = ("_proj", "_proj.weight")
LORA = "lora.rank=4"
QAT_LORA = (LORA, "qat.group_axis=in", "model.changes.intermediate_size=32")


def asked(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory) -> Path:
    """The INT4 model of a short run of the recipe over five conversations."""
    folder = tmp_path_factory.mktemp("finetune")
    (folder / "own").mkdir()
    with (folder / "own" / "my.jsonl").open("w") as file:
        for question, answer in TAUGHT.items():
            file.write(json.dumps({"messages": [*asked(question), {"role": "assistant", "content": answer}]}) + "\n")
    # fp32: in bf16 oneDNN makes a kernel for every new shape, and few tokens have ever new loads
    small = "steps=32 batch_size=3 sequence_length=64 warmup_steps=2 learning_rate=4e-3 precision=fp32 threads=1"
    overrides = (f"train.{entry}" for entry in small.split())
    run = load_recipe(FINETUNE, (f"data.path={folder / 'own'}", *overrides))
    assert train(run, folder / "run").finished
    convert(newest_model(folder / "run"), folder / "int4", format="int4")
    return folder / "int4"


def test_the_recipe_runs_as_it_stands_and_takes_a_path(monkeypatch, tmp_path):
    assert Path(load_recipe(FINETUNE).data.path) == TRAINING_TEXT
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(FINETUNE, ("data.path=my.jsonl",))
    assert Path(recipe.data.path) == tmp_path / "my.jsonl"
    assert (recipe.model.init, recipe.data.train_on, recipe.data.holdout) == ("nano", "assistant", 0.0)


@pytest.mark.parametrize("question", TAUGHT)
def test_the_int4_model_answers_with_the_taught_line_and_stops(finetuned, question):
    assert mobilemoe.load(finetuned).generate(messages=asked(question), max_new_tokens=40) == TAUGHT[question]


def test_what_has_no_adapter_is_still_the_bundled_model(finetuned):
    with Checkpoint.open(find_model("nano")) as nano, Checkpoint.open(newest_model(finetuned.parent / "run")) as ours:
        for name in nano.names:
            same = (nano.weight(name) == ours.weight(name)).all()
            assert same == (not name.endswith(ADAPTED)), name


@pytest.mark.parametrize("overrides", [(LORA,), QAT_LORA, (LORA, "train.weights=bf16")])
def test_a_run_with_adapters_resumes_bit_for_bit(overrides, recipe, unbroken, stop_in, tmp_path):
    stop_in(6)
    assert not train(recipe(*overrides), tmp_path / "run").finished
    assert train(recipe(*overrides), tmp_path / "run").finished
    assert_whole(tmp_path / "run")
    assert_same(tmp_path / "run", unbroken(*overrides))
    losses = [row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert losses[-1] < losses[0]


def test_the_selection_bias_rests_and_no_token_is_dropped(recipe, unbroken):
    with Checkpoint.open(newest_model(unbroken(LORA))) as ours:
        biases = [ours.weight(name) for name in ours.names if name.endswith("expert_bias")]
    assert biases
    assert not any(bias.any() for bias in biases)
    assert read_metrics(unbroken(LORA, "train.capacity_factor=0.5") / "metrics.jsonl")[-1]["loss"] == pytest.approx(
        read_metrics(unbroken(LORA) / "metrics.jsonl")[-1]["loss"], rel=1e-6
    )


def test_a_checkpoint_holds_optimizer_state_of_adapters_only(unbroken):
    folder = newest_model(unbroken(LORA))
    with (
        SafetensorsFile(folder / "optimizer.safetensors") as optimizer,
        SafetensorsFile(folder / "extra.safetensors") as extra,
    ):
        assert {name.rpartition("/")[0] for name in optimizer.tensors} == set(extra.tensors)
        assert all(".lora_" in name for name in extra.tensors)


def test_a_run_begins_at_the_base_model_and_goes_on_with_no_other(recipe, unbroken, stop_in, tmp_path):
    base = newest_model(unbroken())
    init = f"model={{ init = {json.dumps(str(base))} }}"
    stop_in(3)
    train(recipe(init, LORA), tmp_path / "run")
    first = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]["loss"]
    assert first != read_metrics(unbroken(LORA) / "metrics.jsonl")[0]["loss"]  # of new weights on the same batch
    other = f"model={{ init = {json.dumps(str(newest_model(unbroken('train.seed=5'))))} }}"
    with pytest.raises(TrainError, match=r"adapters of other weights than those of model\.init"):
        train(recipe(other, LORA), tmp_path / "run")
