"""Promises of train's parts: losses, schedule, load balance, optimizer and recipes, each against something simpler."""

import dataclasses
import itertools
import math
import tomllib
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from mobilemoe.data.config import DataConfig
from mobilemoe.errors import ConfigError, MobileMoEError, TrainError, UsageError
from mobilemoe.hub import find_model
from mobilemoe.model import MobileMoE
from mobilemoe.model.router import Router, Routing
from mobilemoe.presets import PRESETS, family_member
from mobilemoe.tokenizer import Tokenizer
from mobilemoe.train import balance
from mobilemoe.train import loss as loss_module
from mobilemoe.train.loop import model_config
from mobilemoe.train.loss import IGNORED, cross_entropy_sum, router_z_loss
from mobilemoe.train.metrics import MetricsLog, read_metrics
from mobilemoe.train.optimizer import make_optimizer, moments, restore_moments
from mobilemoe.train.recipe import Recipe, TrainTable, load_recipe
from mobilemoe.train.schedule import learning_rate

RECIPE = Path(__file__).parents[1] / "recipes" / "nano-cpu.toml"
TINY = family_member(64, expansion=2, granularity=4, layers=2, vocab_size=96)


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads on a busy machine wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- cross entropy


def reference(x_ND, head_VD, targets_N):
    """Loss and gradients by PyTorch's own cross entropy, over all logits at once."""
    x_ND, head_VD = x_ND.detach().clone().requires_grad_(), head_VD.detach().clone().requires_grad_()
    loss = cross_entropy(x_ND @ head_VD.t(), targets_N, ignore_index=IGNORED, reduction="sum")
    loss.backward()
    return loss.detach(), x_ND.grad, head_VD.grad


def chunked(x_ND, head_VD, targets_N, scale=1.0):
    x_ND, head_VD = x_ND.detach().clone().requires_grad_(), head_VD.detach().clone().requires_grad_()
    loss = cross_entropy_sum(x_ND, head_VD, targets_N)
    (loss * scale).backward()
    return loss.detach(), x_ND.grad, head_VD.grad


def example(tokens, ignored, dtype=torch.float64, vocabulary=37, hidden=8):
    generator = torch.Generator().manual_seed(tokens)
    x_ND = torch.randn(tokens, hidden, generator=generator, dtype=torch.float64)
    head_VD = torch.randn(vocabulary, hidden, generator=generator, dtype=torch.float64)
    targets_N = torch.randint(vocabulary, (tokens,), generator=generator)
    targets_N[torch.rand(tokens, generator=generator) < ignored] = IGNORED
    return x_ND.to(dtype), head_VD.to(dtype), targets_N


@pytest.mark.parametrize("ignored", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 15, 16, 17, 40])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_chunked_cross_entropy_is_the_plain_one_in_value_and_gradients(dtype, tolerance, tokens, ignored, monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK", 8)
    case = example(tokens, ignored, dtype)
    for ours, theirs in zip(chunked(*case), reference(*case), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("tokens", [511, 512, 513])
def test_the_real_chunk_size_changes_nothing(tokens):
    case = example(tokens, 0.1)
    for ours, theirs in zip(chunked(*case), reference(*case), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_loss_can_be_scaled_before_the_gradients_are_taken():
    case = example(9, 0.2)
    _, x_gradient, head_gradient = chunked(*case)
    _, scaled_x, scaled_head = chunked(*case, scale=-0.25)
    torch.testing.assert_close(scaled_x, -0.25 * x_gradient)
    torch.testing.assert_close(scaled_head, -0.25 * head_gradient)


def test_bf16_states_give_an_fp32_loss_near_the_exact_one():
    x_ND, head_VD, targets_N = example(40, 0.2, torch.float32)
    x_ND, head_VD = x_ND.bfloat16(), head_VD / 4
    loss, x_gradient, head_gradient = chunked(x_ND, head_VD, targets_N)
    exact, exact_x, exact_head = reference(x_ND.double(), head_VD.double(), targets_N)
    assert (loss.dtype, x_gradient.dtype, head_gradient.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)
    for ours, theirs in ((x_gradient, exact_x), (head_gradient, exact_head)):
        assert (ours.double() - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize("size", [1e3, 1e-3])
def test_huge_logits_neither_overflow_nor_lose_the_loss(size):
    x_ND, head_VD, targets_N = example(9, 0.0, torch.float32)
    ours, theirs = chunked(size * x_ND, head_VD, targets_N), reference(size * x_ND, head_VD, targets_N)
    assert all(torch.isfinite(value).all() for value in ours)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_ignored_targets_get_no_gradient_at_all():
    x_ND, head_VD, targets_N = example(40, 0.5)
    _, x_gradient, _ = chunked(x_ND, head_VD, targets_N)
    assert (x_gradient[targets_N == IGNORED] == 0).all()
    assert (x_gradient[targets_N != IGNORED] != 0).any(dim=1).all()


# ---- z-loss


def routing(logits_NE):
    return Routing(logits_NE, torch.zeros(len(logits_NE), 1, dtype=torch.long), torch.ones(len(logits_NE), 1))


def test_z_loss_is_the_mean_square_of_the_log_sum_summed_over_layers():
    layers = [torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)]
    expected = 0.0
    for logits_NE in layers:
        for row in logits_NE.tolist():
            expected += math.log(sum(map(math.exp, row))) ** 2 / 5
    assert router_z_loss([routing(logits) for logits in layers]).item() == pytest.approx(expected, rel=1e-12)


def test_z_loss_pulls_the_log_sum_towards_zero():
    logits_NE = torch.full((3, 4), 5.0, requires_grad=True)
    router_z_loss([routing(logits_NE)]).backward()
    assert (logits_NE.grad > 0).all()


# ---- schedule


def table(**changes) -> TrainTable:
    return TrainTable(**{"steps": 100, "batch_size": 4, "sequence_length": 8, "learning_rate": 0.1} | changes)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_warm_up_rises_evenly_to_the_peak_and_decay_falls_to_the_final_rate(schedule):
    train = table(schedule=schedule, warmup_steps=10, final_learning_rate=0.01)
    rates = [learning_rate(train, step) for step in range(101)]
    assert rates[:10] == pytest.approx([0.01 * n for n in range(1, 11)])
    assert rates[10] == pytest.approx(0.1)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert rates[100] == pytest.approx(0.01)
    assert 0.01 < rates[99] < 0.0111
    assert rates[55] == pytest.approx((0.1 + 0.01) / 2)


def test_cosine_is_flat_at_both_ends_and_linear_is_not():
    cosine, linear = table(schedule="cosine"), table(schedule="linear")
    assert learning_rate(cosine, 25) == pytest.approx(0.1 * (1 + math.cos(math.pi / 4)) / 2)
    assert learning_rate(linear, 25) == pytest.approx(0.075)
    assert learning_rate(cosine, 1) > 0.0999
    assert learning_rate(linear, 1) == pytest.approx(0.099)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [0, 1, 99, 100, 150])
def test_every_step_has_a_finite_positive_rate_no_higher_than_the_peak(schedule, warmup):
    train = table(schedule=schedule, warmup_steps=warmup)
    assert all(0 < learning_rate(train, step) <= 0.1 for step in range(100))


# ---- load balance


def test_each_bias_moves_against_its_load_by_exactly_the_rate():
    layers = MobileMoE(TINY).moe_layers()
    experts = TINY.num_local_experts
    load_LE = torch.tensor([[10] * experts, [0, 20, *[10] * (experts - 2)]])
    balance.move_biases(layers, load_LE, 0.25)
    assert layers[0].expert_bias.tolist() == [0.0] * experts  # even load: nothing moves
    assert layers[1].expert_bias.tolist() == [0.25, -0.25, *[0.0] * (experts - 2)]
    balance.move_biases(layers, load_LE, 0.25)
    assert layers[1].expert_bias.tolist() == [0.5, -0.5, *[0.0] * (experts - 2)]


def test_models_without_a_selection_bias_are_left_alone():
    softmax = dataclasses.replace(TINY, router_score="softmax")
    layers = MobileMoE(softmax).moe_layers()
    balance.move_biases(layers, torch.ones(2, TINY.num_local_experts), 0.25)
    assert all(layer.expert_bias is None for layer in layers)
    assert MobileMoE(family_member(64, expansion=1, layers=1, vocab_size=96)).moe_layers() == []


def test_the_bias_evens_out_the_load_of_a_router_that_favours_some_experts():
    config = dataclasses.replace(TINY, num_local_experts=8, num_experts_per_tok=2)
    generator = torch.Generator().manual_seed(0)
    router = Router(config)
    layer = MobileMoE(dataclasses.replace(config, num_hidden_layers=1)).moe_layers()[0]
    with torch.no_grad():
        router.weight.normal_(0, 0.1, generator=generator)
        router.weight[:, 0] = torch.linspace(-0.5, 0.5, 8)  # the first input makes the last experts popular
    x_ND = torch.randn(2000, 64, generator=generator)
    x_ND[:, 0] = 3.0

    def loads():
        with torch.no_grad():
            return balance.loads([router(x_ND, layer.expert_bias)])

    before = balance.report(loads())
    for _ in range(300):
        balance.move_biases([layer], loads(), 0.005)
    after = balance.report(loads())
    assert before.variation > 1
    assert after.variation < 0.1
    assert after.dead == 0
    assert loads().sum() == 4000


def test_the_report_counts_dead_experts_and_the_spread_over_experts():
    report = balance.report(torch.tensor([[2, 2, 2, 2], [0, 8, 0, 0]]))
    assert report.dead == 3
    assert report.variation == pytest.approx((0 + math.sqrt(3)) / 2)


# ---- optimizer


def initialized(seed=0):
    model = MobileMoE(TINY)
    model.initialize(seed)
    return model


def step(model, optimizer, seed):
    tokens_BT = torch.randint(96, (2, 8), generator=torch.Generator().manual_seed(seed))
    cross_entropy(model(tokens_BT).flatten(0, 1), tokens_BT.roll(-1, 1).flatten()).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_every_weight_is_optimised_once_and_only_matrices_decay():
    model = initialized()
    optimizer = make_optimizer(model, table(weight_decay=0.3, betas=(0.8, 0.9), eps=1e-6))
    decayed, kept = optimizer.param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[names[id(parameter)] for parameter in group["params"]] for group in (decayed, kept)]
    assert sorted(groups[0] + groups[1]) == sorted(names.values())
    assert all(name.endswith("norm.weight") for name in groups[1])
    assert not any(name.endswith("norm.weight") for name in groups[0])
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    assert all((group["betas"], group["eps"], group["lr"]) == ((0.8, 0.9), 1e-6, 0.1) for group in (decayed, kept))
    assert not any("expert_bias" in name for name in names.values())  # no gradient moves it


def test_restored_moments_go_on_bit_for_bit():
    first, second = initialized(), initialized()
    optimizer = make_optimizer(first, table())
    for seed in range(3):
        step(first, optimizer, seed)
    saved = {name: value.clone() for name, value in moments(first, optimizer).items()}
    assert len(saved) == 2 * len(list(first.parameters()))
    second.load_state_dict(first.state_dict())
    resumed = make_optimizer(second, table())
    restore_moments(second, resumed, saved, 3)
    for seed in (3, 4):
        step(first, optimizer, seed)
        step(second, resumed, seed)
    for ours, theirs in zip(second.parameters(), first.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for name, value in moments(second, resumed).items():
        assert torch.equal(value, moments(first, optimizer)[name])


@pytest.mark.parametrize("damage", ["missing", "misshapen"])
def test_moments_of_another_model_are_refused_by_name(damage):
    model = initialized()
    optimizer = make_optimizer(model, table())
    step(model, optimizer, 0)
    saved = moments(model, optimizer)
    if damage == "missing":
        del saved["model.norm.weight/exp_avg_sq"]
    else:
        saved["model.norm.weight/exp_avg_sq"] = torch.zeros(3)
    with pytest.raises(TrainError, match=r"no exp_avg_sq for model.norm.weight of shape \[64\]"):
        restore_moments(model, make_optimizer(model, table()), saved, 1)


# ---- metrics


@pytest.mark.parametrize("tail", ["", '{"step": 3, "lo', '{"step": 3}', '{"step": 4}\n{"step": 5}\n', "\0\0\0"])
def test_metrics_forget_what_came_after_the_checkpoint_or_was_cut_short(tail, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n' + tail)
    log = MetricsLog(path, 2)
    log.write({"step": 3, "loss": 0.1})
    log.close()
    assert read_metrics(path) == [{"step": 1}, {"step": 2}, {"step": 3, "loss": 0.1}]


# ---- recipes


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
    assert (train.z_loss, train.balance_rate, train.precision) == (1e-4, 1e-3, "bf16")


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
        ("model.changes.head_dim=32", lambda r: r.model.changes, {"head_dim": 32}),
        ("model.changes.layer_types=['full_attention']", lambda r: r.model.changes["layer_types"], ["full_attention"]),
        ("name=other-1.0", lambda r: r.name, "other-1.0"),
        ("data.holdout=0", lambda r: r.data.holdout, 0.0),
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
    "train.steps=many": "train.steps is 'many': ",
    "train.step=5": "train.step is 5: Extra inputs",
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
    "tokenizer.path=7": "tokenizer.path is 7: ",
    "model.changes=7": "model.changes is 7: ",
    "colour=blue": "colour is 'blue': ",
}


@pytest.mark.parametrize(("override", "words"), BAD_ENTRIES.items())
def test_a_bad_entry_is_refused_by_name_value_and_rule(override, words):
    with pytest.raises(ConfigError) as caught:
        load_recipe(RECIPE, (override,))
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(RECIPE))
    assert len(str(caught.value).splitlines()) == 1


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
        (None, "cannot be read: No such file"),
        ("folder", "cannot be read: Is a directory"),
        (b"name = ", "is not valid TOML"),
        (b'name = "a"\nname = "b"\n', "is not valid TOML"),
        (b"\xff\xfe", "is not valid TOML"),
        (b"", "name: Field required"),
        (b'name = "a"\n', "model: Field required"),
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
