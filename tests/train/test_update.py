"""Promises of what a step changes: the rate's schedule, the bias for load balance, and the weights."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from mobilemoe.errors import TrainError
from mobilemoe.model import MobileMoE
from mobilemoe.model.router import Router
from mobilemoe.presets import family_member
from mobilemoe.train import balance
from mobilemoe.train.optimizer import make_optimizer, moments, restore_moments
from mobilemoe.train.schedule import balance_rate, learning_rate
from train_runs import table

pytest_plugins = ["train_runs"]
pytestmark = pytest.mark.usefixtures("one_thread")

TINY = family_member(64, expansion=2, granularity=4, layers=2, vocab_size=96)


# ---- schedule


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


def test_wsd_is_stable_up_to_its_decay_and_shorter_runs_are_beginnings_of_longer_ones():
    train = table(schedule="wsd", warmup_steps=10, final_learning_rate=0.01, decay_share=0.2)
    rates = [learning_rate(train, step) for step in range(101)]
    assert rates[:10] == pytest.approx([0.01 * n for n in range(1, 11)])
    assert set(rates[10:81]) == {0.1}
    assert rates[90] == pytest.approx(0.055)
    assert rates[100] == pytest.approx(0.01)
    assert 0.01 < rates[99] < 0.0146
    longer = table(schedule="wsd", steps=400, warmup_steps=10, final_learning_rate=0.01)
    assert [learning_rate(longer, step) for step in range(80)] == rates[:80]
    assert (train.decay_start, longer.decay_start) == (80, 320)


def test_the_selection_bias_settles_during_the_decay_of_wsd_alone():
    train = table(schedule="wsd", balance_rate=1e-2)
    assert {balance_rate(train, step) for step in range(81)} == {1e-2}
    assert balance_rate(train, 90) == pytest.approx(5e-3)
    assert balance_rate(train, 99) == pytest.approx(5e-4)
    for schedule in ("cosine", "linear"):
        assert {balance_rate(table(schedule=schedule, balance_rate=1e-2), step) for step in range(100)} == {1e-2}


def test_wsd_that_would_decay_before_it_is_warm_is_refused():
    with pytest.raises(ValueError, match="warmup_steps is 90, but schedule 'wsd' decays from step 80 of 100"):
        table(schedule="wsd", warmup_steps=90)


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

    def load_LE():
        with torch.no_grad():
            return router(x_ND, layer.expert_bias).load_E().unsqueeze(0)

    def variation():
        load_E = load_LE()[0].double()
        return float(load_E.std(correction=0) / load_E.mean())

    assert variation() > 1
    for _ in range(300):
        balance.move_biases([layer], load_LE(), 0.005)
    assert variation() < 0.1
    assert load_LE().min() > 0
    assert load_LE().sum() == 4000


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
    decayed, kept, scales = optimizer.param_groups
    assert scales["params"] == []  # learnt scales, which this model has none of
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
    saved = {name: value.numpy().copy() for name, value in moments(first, optimizer).items()}
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
    saved = {name: value.numpy() for name, value in moments(model, optimizer).items()}
    if damage == "missing":
        del saved["model.norm.weight/exp_avg_sq"]
    else:
        saved["model.norm.weight/exp_avg_sq"] = np.zeros(3, np.float32)
    with pytest.raises(TrainError, match=r"no exp_avg_sq for model.norm.weight of shape \[64\]"):
        restore_moments(model, make_optimizer(model, table()), saved, 1)
