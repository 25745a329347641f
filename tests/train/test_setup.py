"""Promises of what a recipe sets up: models that exist, weights in bf16, recomputed activations, other optimizers."""

import pytest
import torch
import torch._dynamo

from mobilemoe.checkpoint import Checkpoint
from mobilemoe.checkpoint.run_folder import step_folder, step_folders
from mobilemoe.errors import ConfigError, DataError, TrainError
from mobilemoe.hub import ASSETS
from mobilemoe.tokenizer import Tokenizer
from mobilemoe.train.loop import train
from mobilemoe.train.parallel.distributed import World
from mobilemoe.train.recipe import Recipe
from mobilemoe.train.setup import build_model, model_config, set_up
from train_runs import assert_same, rows

pytest_plugins = ["train_runs"]
pytestmark = pytest.mark.usefixtures("quick")

ALONE = World(0, 1, torch.device("cpu"))
WIDE = ("model.changes.intermediate_size=32",)  # what INT4's groups divide


def changed(recipe: Recipe, **tables) -> Recipe:
    return Recipe.model_validate(recipe.model_dump() | tables)


def from_run(recipe: Recipe, run, **tables) -> Recipe:
    return changed(recipe, model={"init": str(run)}, **tables)


# ---- a model that exists


def test_a_run_can_start_from_what_another_one_learnt(recipe, unbroken):
    asked, tokenizer = from_run(recipe("train.seed=5"), unbroken()), Tokenizer.load(ASSETS / "nano")
    model = build_model(asked, tokenizer)
    with Checkpoint.open(step_folder(unbroken(), 10)) as saved:
        assert model_config(asked, tokenizer) == saved.config
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, torch.from_numpy(saved.weight(name))), name


def test_an_int4_model_can_be_trained_on(recipe, tiny_folder, tmp_path):
    asked = from_run(recipe("train.steps=2"), tiny_folder)
    assert not model_config(asked, Tokenizer.load(ASSETS / "nano")).is_quantized
    assert train(asked, tmp_path / "run").finished


def test_a_model_whose_context_is_too_short_is_refused(recipe, tiny_folder):
    with pytest.raises(ConfigError, match="sequence_length is 300, but the model's context is 256"):
        set_up(from_run(recipe("train.sequence_length=300"), tiny_folder), ALONE)


# ---- how it is trained


def test_bf16_weights_have_bf16_moments_and_an_fp32_selection_bias(recipe):
    setup = set_up(recipe("train.weights=bf16", "train.precision=bf16"), ALONE)
    assert {parameter.dtype for parameter in setup.model.parameters()} == {torch.bfloat16}
    assert {layer.expert_bias.dtype for layer in setup.model.moe_layers()} == {torch.float32}
    for parameter in setup.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    setup.optimizer.step()
    state = setup.optimizer.state[setup.model.model.embed_tokens.weight]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.bfloat16


def test_recomputed_activations_change_no_bit(recipe, unbroken, tmp_path):
    train(recipe("train.activation_checkpointing=true"), tmp_path / "run")
    assert_same(tmp_path / "run", unbroken())


# Experts on a CPU take sizes from their data, which torch.compile cannot look into.
DENSE = (
    "model.changes.ffn_type=dense",
    "model.changes.num_local_experts=0",
    "model.changes.num_experts_per_tok=0",
    "model.changes.intermediate_size_mlp=0",
)


@pytest.mark.parametrize("recomputed", ["false", "true"])
def test_blocks_and_the_last_norm_are_compiled_once_and_whole(recomputed, recipe, unbroken, tmp_path, monkeypatch):
    compile_real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **_: compile_real(call, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    train(recipe(*DENSE, "train.compile=true", f"train.activation_checkpointing={recomputed}"), tmp_path / "run")
    assert torch._dynamo.utils.counters["frames"]["ok"] == 2
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    ours, theirs = ([row["loss"] for row in rows(run)] for run in (tmp_path / "run", unbroken(*DENSE)))
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.weights=bf16", "train.precision=bf16"),
        ("train.optimizer=muon",),
        (*WIDE, "qat.group_axis=in"),
        (*WIDE, "qat.learn_scales=true"),
    ],
    ids=["bf16 weights", "muon", "qat", "learnt scales"],
)
def test_every_kind_of_run_goes_on_bit_for_bit(overrides, recipe, unbroken, stop_in, tmp_path):
    stop_in(6)
    assert not train(recipe(*overrides), tmp_path / "run").finished
    train(recipe(*overrides), tmp_path / "run")
    assert_same(tmp_path / "run", unbroken(*overrides))


# ---- adapters


@pytest.fixture
def adapted(recipe, unbroken):
    return from_run(recipe("lora.rank=2"), unbroken())


def test_adapters_go_on_bit_for_bit_and_are_saved_merged(adapted, unbroken, stop_in, tmp_path):
    train(adapted, tmp_path / "whole")
    stop_in(6)
    assert not train(adapted, tmp_path / "run").finished
    train(adapted, tmp_path / "run")
    assert_same(tmp_path / "run", tmp_path / "whole")
    assert rows(tmp_path / "run")[-1]["loss"] < rows(unbroken())[0]["loss"]
    with (
        Checkpoint.open(step_folders(tmp_path / "run")[-1]) as after,
        Checkpoint.open(step_folder(unbroken(), 10)) as base,
    ):
        assert after.names == base.names
        moved = {name for name in base.names if (after.weight(name) != base.weight(name)).any()}
    assert len(moved) == 2 * 9  # four of attention, two of the routed experts, three of the shared expert a layer


def test_adapters_are_not_put_beside_other_weights(adapted, recipe, unbroken, stop_in, tmp_path):
    stop_in(2)
    train(adapted, tmp_path / "run")
    other = changed(adapted, model={"init": str(unbroken("train.precision=bf16"))})
    with pytest.raises(TrainError, match=r"holds adapters of other weights than those of model\.init"):
        train(other, tmp_path / "run")


def test_a_run_that_cannot_begin_leaves_no_folder(recipe, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        train(recipe("data.path=/no/such/folder"), tmp_path / "runs" / "run")
    assert not (tmp_path / "runs" / "run").exists()
