"""Promises of the recipes in recipes/: they can be read, follow each other, and are what spec section 5 says."""

import dataclasses
import re
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from mobilemoe import accounting
from mobilemoe.presets import PRESETS, preset
from mobilemoe.train.estimate import architecture
from mobilemoe.train.pipeline import STAGES, pipeline
from mobilemoe.train.recipe import Recipe, load_recipe
from places import RECIPES, ROOT, TRAINING_TEXT

ALL = sorted(RECIPES.glob("*.toml"))
SIZES = ("S", "M", "L")

# spec section 5: tokens, sequence, learning rate, schedule, capacity factor.
PUBLISHED = {
    "pretrain": (6e12, 2048, 4e-4, "cosine", 1.5),
    "midtrain": (500e9, 8192, 4e-5, "linear", 1.5),
    "sft": (126e9, 8192, 4e-6, "cosine", None),
    "qat": (21e9, 8192, 4e-6, "cosine", None),
}
# Shares of the kinds of text, in percent; of mid-training 16 are unknown.
KINDS = {
    "pretrain": {"web": 62, "math": 11.6, "code": 10, "knowledge": 10, "science": 6.4},
    "midtrain": {"knowledge": 32, "code": 22, "math": 21, "web": 9, "the rest": 16},
    "sft": {
        "math": 30.4,
        "chat": 25.4,
        "code": 22.1,
        "safety": 9.4,
        "science and knowledge": 7.7,
        "tools": 3.9,
        "reasoning": 1.1,
    },
}
NANO_TOKENS = {"pretrain": 800e6, "midtrain": 160e6, "sft": 31.5e6, "qat": 147e6}


def shipped(size: str, stage: str) -> Recipe:
    return load_recipe(RECIPES / f"{size}-{stage}.toml")


def tokens(recipe: Recipe) -> int:
    return recipe.train.steps * recipe.train.batch_size * recipe.train.sequence_length


def kinds(path: Path) -> dict[str, float]:
    """Sums of the weights under each comment of a mixture that names a kind, as "# web, 62" does."""
    sums: dict[str, float] = {}
    kind = ""
    for line in path.read_text().partition("mixture = [")[2].splitlines():
        if heading := re.fullmatch(r"  # ([a-z ]+), .*", line):
            kind = heading[1]
        elif weight := re.search(r"weight = ([\d.]+)", line):
            sums[kind] = sums.get(kind, 0) + float(weight[1])
    return sums


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_read_and_named_as_its_file(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.model.preset is None or recipe.model.preset in PRESETS


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("size", SIZES)
def test_the_family_is_trained_as_the_paper_says(size, stage):
    recipe = shipped(size, stage)
    train = recipe.train
    count, *schedule = PUBLISHED[stage]
    assert tokens(recipe) == pytest.approx(count, rel=0.01)
    assert [train.sequence_length, train.learning_rate, train.schedule, train.capacity_factor] == schedule
    assert (train.betas, train.eps, train.weight_decay, train.warmup_steps) == ((0.9, 0.95), 1e-8, 0.1, 2000)
    assert (train.balance_rate, train.z_loss, train.optimizer) == (1e-3, 1e-4, "adamw")
    assert train.batch_size % (64 * train.micro_batch_size) == 0  # runs unchanged on 64 devices
    assert train.sequence_length <= preset(size).max_position_embeddings


@pytest.mark.parametrize("stage", STAGES)
def test_sizes_differ_in_nothing_but_the_model_and_the_micro_batch(stage):
    def common(size: str) -> dict:
        values = shipped(size, stage).model_dump(exclude={"name", "model"})
        del values["train"]["micro_batch_size"]
        return values

    assert common("S") == common("M") == common("L")


@pytest.mark.parametrize("size", [*SIZES, "nano"])
def test_stages_differ_in_data_and_schedule_only_and_each_starts_from_the_last(size):
    recipes = [shipped(size, stage) for stage in STAGES]
    assert [recipe.model.preset for recipe in recipes] == [size, None, None, None]
    assert [recipe.model.init for recipe in recipes[1:]] == [f"runs/{size}-{stage}" for stage in STAGES[:-1]]
    assert [recipe.qat is not None for recipe in recipes] == [False, False, False, True]
    taught = "all" if size == "nano" else "assistant"  # as its recipe explains
    assert [recipe.data.train_on for recipe in recipes] == ["all", "all", taught, taught]
    assert len({recipe.tokenizer.path for recipe in recipes}) == 1
    scheduled = {"steps", "batch_size", "micro_batch_size", "sequence_length", "learning_rate", "final_learning_rate"}
    scheduled |= {"warmup_steps", "schedule", "capacity_factor", "balance_rate", "checkpoint_every"}
    rest = [recipe.train.model_dump(exclude=scheduled) for recipe in recipes]
    assert rest == rest[:1] * 4
    for earlier, later in pairwise(recipes):
        assert later.train.learning_rate <= earlier.train.learning_rate
    if size != "nano":  # which warms up again
        assert recipes[0].train.final_learning_rate == recipes[1].train.learning_rate


@pytest.mark.parametrize("stage", KINDS)
def test_the_mixture_has_the_papers_shares(stage):
    assert kinds(RECIPES / f"S-{stage}.toml") == pytest.approx(KINDS[stage])


def test_every_source_of_the_family_is_a_data_set_on_the_hub():
    sources = [source for size in SIZES for stage in STAGES for source in shipped(size, stage).data.mixture]
    builders = {source.hub for source in sources} & {"json", "parquet"}
    assert builders == {"json"}
    for source in sources:
        if source.hub in builders:
            assert source.data_files.startswith("hf://datasets/")
        else:
            assert re.fullmatch(r"[\w-]+/[\w.-]+", source.hub)


def test_nano_is_sized_for_one_gpu_and_the_package():
    nano = architecture(shipped("nano", "pretrain").model)
    for stage, count in NANO_TOKENS.items():
        recipe = shipped("nano", stage)
        assert tokens(recipe) == pytest.approx(count, rel=0.01)
        assert recipe.train.sequence_length <= nano.max_position_embeddings
        assert recipe.train.capacity_factor is None
        assert all(list(TRAINING_TEXT.glob(source.files)) for source in recipe.data.mixture)
    assert accounting.int4_file_bytes(nano) < 31.3e6  # with the tokenizer 32 MB


def test_the_architectures_to_compare_with_have_nanos_size():
    nano = architecture(shipped("nano", "pretrain").model)
    comment = re.findall(r"^#(   .*)", (RECIPES / "nano-pretrain.toml").read_text(), re.MULTILINE)
    text = re.sub(r"\(.*?\)", "", " ".join(comment))
    changes = [dict(re.findall(r'(\w+)="?(\w+)"?', part)) for part in re.split(r"[a-z][^:]*: +", text)[1:]]
    assert len(changes) == 4
    for change in changes:
        text = "\n".join(f"{key} = {value}" for key, value in change.items()).replace("dense", '"dense"')
        twin = accounting.active_parameters(dataclasses.replace(nano, **tomllib.loads(text)))
        assert twin == pytest.approx(accounting.active_parameters(nano), rel=0.02), change


def test_the_pipeline_of_the_repository_finds_its_recipes(monkeypatch):
    monkeypatch.chdir(ROOT)
    stages = pipeline("nano")
    assert [stage.recipe for stage in stages] == [shipped("nano", stage) for stage in STAGES]
    assert {stage.config for stage in stages} == {architecture(shipped("nano", "pretrain").model)}
