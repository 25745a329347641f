"""Promises of recipes: what a file and its overrides mean, and how each fault is named."""

import dataclasses
import tomllib
from pathlib import Path

import pytest

from mobilemoe.data.config import DataConfig
from mobilemoe.errors import ConfigError, MobileMoEError, UsageError
from mobilemoe.hub import find_model
from mobilemoe.presets import PRESETS
from mobilemoe.tokenizer import Tokenizer
from mobilemoe.train.recipe import Recipe, load_recipe
from mobilemoe.train.setup import model_config
from places import RECIPES
from train_runs import table

RECIPE = RECIPES / "nano-cpu.toml"


def test_the_committed_recipe_is_read_with_its_data_beside_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(RECIPE)
    assert recipe.name == "nano-cpu"
    assert recipe.model.preset == "nano"
    assert recipe.data.path == str(RECIPE.parent / "data")
    assert recipe.tokenizer.path == "nano"
    assert recipe.train.steps == tomllib.loads(RECIPE.read_text())["train"]["steps"]
    assert sum(source.weight for source in recipe.data.mixture) == pytest.approx(1)


def test_what_a_recipe_leaves_out_is_what_the_paper_says():
    train = table()
    assert (train.betas, train.eps, train.weight_decay, train.clip_norm) == ((0.9, 0.95), 1e-8, 0.1, 1.0)
    assert (train.z_loss, train.balance_rate, train.precision) == (1e-4, 1e-3, "auto")
    assert (train.weights, train.optimizer, train.compile, train.deterministic) == ("fp32", "adamw", None, False)
    recipe = load_recipe(RECIPE)
    assert (recipe.qat, recipe.lora) == (None, None)
    assert (recipe.distributed.replicate, recipe.distributed.expert_parallel) == (None, 1)
    qat = load_recipe(RECIPE, ("qat={}",)).qat
    assert (qat.group_axis, qat.activations, qat.learn_scales, qat.distill_from) == ("in", "int8", False, None)


@pytest.mark.parametrize(
    ("override", "get", "value"),
    [
        ("train.steps=7", lambda r: r.train.steps, 7),
        ("train.learning_rate = 1e-4", lambda r: r.train.learning_rate, 1e-4),
        ("train.learning_rate=1", lambda r: r.train.learning_rate, 1.0),
        ("train.precision=fp32", lambda r: r.train.precision, "fp32"),
        ('train.precision="fp32"', lambda r: r.train.precision, "fp32"),
        ("train.betas=[0.5, 0.6]", lambda r: r.train.betas, (0.5, 0.6)),
        ("model.changes={head_dim=32}", lambda r: r.model.changes, {"head_dim": 32}),
        ("model.changes.head_dim=32", lambda r: r.model.changes["head_dim"], 32),
        ("model.changes.eos_token_id=[7]", lambda r: r.model.changes["eos_token_id"], [7]),
        ("name=other-1.0", lambda r: r.name, "other-1.0"),
        ("data.holdout=0", lambda r: r.data.holdout, 0.0),
        ("data.train_on=assistant", lambda r: r.data.train_on, "assistant"),
        ("train.optimizer=muon", lambda r: r.train.optimizer, "muon"),
        ("train.compile=false", lambda r: r.train.compile, False),
        ("train.spike_factor=4", lambda r: r.train.spike_factor, 4.0),
        ("qat.group_axis=out", lambda r: r.qat.group_axis, "out"),
        ("qat.distill_from=runs/sft", lambda r: r.qat.distill_from, "runs/sft"),
        ("lora.rank=4", lambda r: (r.lora.rank, r.lora.targets), (4, ("attention", "shared", "experts"))),
        ("lora.targets=['shared']", lambda r: r.lora.targets, ("shared",)),
        ("distributed.expert_parallel=4", lambda r: r.distributed.expert_parallel, 4),
        ("model={init='runs/x'}", lambda r: (r.model.preset, r.model.init), (None, "runs/x")),
    ],
)
def test_an_override_changes_its_entry_alone(override, get, value):
    plain, changed = load_recipe(RECIPE), load_recipe(RECIPE, (override,))
    assert get(changed) == value
    differing = {key for key in Recipe.model_fields if getattr(plain, key) != getattr(changed, key)}
    assert differing == {override.split(".")[0].split("=")[0]}


def test_the_last_of_equal_overrides_counts():
    assert load_recipe(RECIPE, ("train.steps=7", "train.steps=8")).train.steps == 8


def test_relative_paths_mean_the_recipes_folder_in_the_file_and_the_current_one_in_an_override(tmp_path, monkeypatch):
    recipes, elsewhere = tmp_path / "recipes", tmp_path / "elsewhere"
    for folder in (recipes / "data", recipes / "words", elsewhere / "text", elsewhere / "words", elsewhere / "data"):
        folder.mkdir(parents=True)
    text = RECIPE.read_text().replace('path = "nano"', 'path = "words"')
    (recipes / "r.toml").write_text(text)
    monkeypatch.chdir(elsewhere)
    recipe = load_recipe(recipes / "r.toml")
    assert (recipe.data.path, recipe.tokenizer.path) == (str(recipes / "data"), str(recipes / "words"))
    recipe = load_recipe(Path("../recipes/r.toml"), ("data.path=text", "tokenizer.path=words"))
    assert (recipe.data.path, recipe.tokenizer.path) == (str(elsewhere / "text"), str(elsewhere / "words"))
    recipe = load_recipe(recipes / "r.toml", (f"data.path={tmp_path}", "tokenizer.path=org/model"))
    assert (recipe.data.path, recipe.tokenizer.path) == (str(tmp_path), "org/model")


BAD_ENTRIES = {
    "train.steps=0": "train.steps is 0: ",
    "train.steps=1.5": "train.steps is 1.5: ",
    "train.steps=many": "train.steps is 'many': it should be a valid integer",
    "train.steps=true": "train.steps is true: it should be a number, without quotes",
    "train.steps='12'": 'train.steps is "12": it should be a number, without quotes',
    "train.learning_rate=true": "train.learning_rate is true: it should be a number",
    "train.betas=[0.9, false]": "train.betas.1 is false: it should be a number",
    "train.deterministic=1": "train.deterministic is 1: it should be true or false",
    "train.deterministic=yes": 'train.deterministic is "yes": it should be true or false',
    "data.holdout=false": "data.holdout is false: it should be a number",
    "train.stepz=5": "there is no entry of this name; did you mean train.steps?",
    "trian.steps=5": "there is no entry of this name; did you mean train?",
    "train.step=5": "train.step is 5: there is no entry of this name",
    "train.batch_size=-1": "train.batch_size is -1: ",
    "train.micro_batch_size=3": "batch_size is 8, not a multiple of micro_batch_size 3",
    "train.sequence_length=1": "train.sequence_length is 1: ",
    "train.learning_rate=0": "train.learning_rate is 0: ",
    "train.learning_rate=inf": "train.learning_rate is inf: ",
    "train.learning_rate=nan": "train.learning_rate is nan: ",
    "train.schedule=step": "train.schedule is 'step': ",
    "train.precision=fp16": "train.precision is 'fp16': ",
    "train.betas=[0.9]": "train.betas.1",
    "train.betas=[0.9, 1.0]": "train.betas.1 is 1.0: ",
    "train.betas=[-0.1, 0.9]": "train.betas.0 is -0.1: ",
    "train.eps=-1": "train.eps is -1: ",
    "train.seed=-1": "train.seed is -1: ",
    "train.seed=99999999999999999999": "train.seed is 99999999999999999999: ",
    "train.z_loss=inf": "train.z_loss is inf: ",
    "train.clip_norm=0": "train.clip_norm is 0: ",
    "train.keep_checkpoints=0": "train.keep_checkpoints is 0: ",
    "train=5": "train is 5: ",
    "name=../up": "name is '../up': ",
    "name=..": "name is '..': ",
    "name=": "name is '': ",
    "data.mixture=[]": "data.mixture is []: ",
    "data.seed=x": "data.seed is 'x': ",
    "data.holdout=1": "data.holdout is 1: ",
    "data.path=": "data.path is '': ",
    "tokenizer.path=": "tokenizer.path is '': ",
    "data.mixture=7": "data.mixture is 7: ",
    "model.changes=7": "model.changes is 7: ",
    "model.init=runs/x": "model: a model has either a preset or an init, and only one of them",
    "model={}": "model: a model has either a preset or an init",
    "model={init='x', changes={head_dim=7}}": "model: a model that starts from init keeps its architecture",
    "data.train_on=user": "data.train_on is 'user': ",
    "train.weights=int8": "train.weights is 'int8': ",
    "train.optimizer=sgd": "train.optimizer is 'sgd': ",
    "train.compile=maybe": "train.compile is 'maybe': ",
    "train.spike_factor=1": "train.spike_factor is 1: ",
    "train.max_spikes=0": "train.max_spikes is 0: ",
    "qat=true": "qat is True: ",
    "qat.group_axis=up": "qat.group_axis is 'up': ",
    "qat.activations=int4": "qat.activations is 'int4': ",
    "qat.distill_weight=0": "qat.distill_weight is 0: ",
    "qat.bits=3": "qat.bits is 3: there is no entry of this name",
    "lora.rank=0": "lora.rank is 0: ",
    "lora.alpha=-1": "lora.alpha is -1: ",
    "lora.targets=['router']": "lora.targets.0 is 'router': ",
    "lora.targets=experts": "lora.targets is 'experts': it should be a list",
    "lora.targets=[]": "lora.targets is []: ",
    "distributed.replicate=0": "distributed.replicate is 0: ",
    "distributed.experts=2": "distributed.experts is 2: there is no entry of this name",
    "colour=blue": "colour is 'blue': ",
}


@pytest.mark.parametrize(("override", "words"), BAD_ENTRIES.items())
def test_a_bad_entry_is_refused_by_name_value_and_rule(override, words):
    with pytest.raises(ConfigError) as caught:
        load_recipe(RECIPE, (override,))
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(RECIPE))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("value", ["2024-01-01", "123", "true", "07:30:00", "1e3", "1_000", "0x1F", "inf", "[7]", "{}"])
@pytest.mark.parametrize("entry", ["data.path", "tokenizer.path", "model.init", "qat.distill_from", "name"])
def test_an_entry_that_is_text_takes_the_value_as_it_is_written(entry, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if entry == "name" and not value.replace("-", "").replace("_", "").isalnum():
        return  # no name of a run
    model = ("model={init='x'}",) if entry == "model.init" else ()
    recipe = load_recipe(RECIPE, (*model, f"{entry} = {value} "))
    table, _, last = entry.rpartition(".")
    found = getattr(getattr(recipe, table) if table else recipe, last)
    assert Path(found).name == value.strip()


def test_text_in_quotes_and_what_may_be_a_list_are_read_as_toml():
    assert load_recipe(RECIPE, ('name="7"',)).name == "7"
    mixture = 'data.mixture=[{name="a", weight=1, files=["x.jsonl", "y.jsonl"]}]'
    assert load_recipe(RECIPE, (mixture,)).data.mixture[0].files == ["x.jsonl", "y.jsonl"]


def test_a_recipe_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbf" + RECIPE.read_bytes())
    assert load_recipe(tmp_path / "bom.toml").train == load_recipe(RECIPE).train


@pytest.mark.parametrize("override", ["", "train.steps", "=5", ".steps=5", "train.=5", "train..steps=5"])
def test_an_override_that_is_no_entry_and_value_is_wrong_usage(override):
    with pytest.raises(UsageError, match=r"is not ENTRY=VALUE, such as train\.steps=200"):
        load_recipe(RECIPE, (override,))


@pytest.mark.parametrize("override", ["name.x=5", "train.steps.x=5", "data.mixture.weight=1"])
def test_an_override_below_what_is_no_table_is_wrong_usage(override):
    with pytest.raises(UsageError, match="is not a table of the recipe"):
        load_recipe(RECIPE, (override,))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        ("folder", "cannot be read: Is a directory"),
        (b"name = ", "is not valid TOML"),
        (b'name = "a"\nname = "b"\n', "is not valid TOML"),
        (b"\xff\xfe", "is not UTF-8 text at byte 0"),
        (b"a = " + b"[" * 5000, "is not valid TOML"),
        (b"a = " + b"9" * 5000, "is not valid TOML"),
        (b"", "name: it is missing"),
        (b'name = "a"\n', "model: it is missing"),
        (b'name = "a"\nmodel = "nano"\n', "model is 'nano': "),
    ],
)
def test_a_recipe_that_cannot_be_read_is_one_sentence_with_its_path(content, words, tmp_path):
    path = tmp_path / "r.toml"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def recipe_with(**model) -> Recipe:
    data = DataConfig(path="x", seed=0, mixture=[{"name": "a", "weight": 1, "files": "*"}])
    tables = {"name": "r", "model": model, "tokenizer": {"path": "nano"}, "data": data, "train": table()}
    return Recipe.model_validate(tables)


def test_the_models_control_ids_are_the_tokenizers_unless_the_recipe_changes_them():
    tokenizer = Tokenizer.load(find_model("nano"))
    config = model_config(recipe_with(preset="micro"), tokenizer)
    assert config.bos_token_id == tokenizer.bos_id
    assert config.eos_token_id == tuple(tokenizer.stop_ids)
    assert config.header_end_token_id == tokenizer.header_end_id
    without = {key: None for key in vars(config) if key.endswith("token_id")} | {"eos_token_id": ()}
    assert dataclasses.replace(config, **without) == PRESETS["micro"]
    changes = {"eos_token_id": [7], "num_hidden_layers": 1}
    changed = model_config(recipe_with(preset="micro", changes=changes), tokenizer)
    assert (changed.eos_token_id, changed.num_hidden_layers) == ((7,), 1)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"preset": "huge"}, "there is no preset 'huge'"),
        ({"preset": "micro", "changes": {"widht": 7}}, "model.changes.widht is not a field of a model config"),
        ({"preset": "micro", "changes": {"raw": {}}}, "model.changes.raw is not a field"),
        ({"preset": "micro", "changes": {"head_dim": 7}}, "head_dim is 7"),
        ({"preset": "micro", "changes": {"head_dim": "7"}}, "head_dim is '7'"),
        ({"preset": "micro", "changes": {"layer_types": 5}}, "layer_types is 5"),
        ({"preset": "micro", "changes": {"num_experts_per_tok": 70}}, "num_experts_per_tok is 70, but there are only"),
        ({"preset": "micro", "changes": {"rope_scaling": {"factor": 2}}}, "rope_scaling is {'factor': 2}"),
        ({"preset": "micro", "changes": {"vocab_size": 16_000}}, "vocab_size is only 16000"),
    ],
)
def test_a_model_that_cannot_be_is_one_sentence(model, words):
    with pytest.raises(MobileMoEError) as caught:
        model_config(recipe_with(**model), Tokenizer.load(find_model("nano")))
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
