"""The model's weights: names, shapes, seeds, and a selection bias that affects the choice only."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from mobilemoe.checkpoint import weights
from mobilemoe.model import MobileMoE
from mobilemoe.model.router import Router
from mobilemoe.presets import PRESETS
from model_configs import CONFIGS, FAMILY
from random_models import EACH_MODEL, assert_close, generator, random_model


@pytest.mark.parametrize(
    "config", [*CONFIGS.values(), PRESETS["nano"], PRESETS["micro"]], ids=[*CONFIGS, "nano", "micro"]
)
def test_parameters_have_the_checkpoints_names_and_shapes(config):
    with torch.device("meta"):
        model = MobileMoE(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == {name: weight.shape for name, weight in weights(config).items()}
    biases = {name for name in shapes if name.endswith("expert_bias")}
    assert shapes.keys() - dict(model.named_parameters()).keys() == biases  # no gradient moves the bias


@EACH_MODEL
def test_initialize_is_deterministic_per_seed(config):
    def fresh(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(torch.seed())  # the global generator has no say
        model = MobileMoE(config)
        model.initialize(seed)
        return model.state_dict()

    first, again, other = fresh(3), fresh(3), fresh(4)
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]), name
        fixed = name.endswith(("norm.weight", "expert_bias"))
        assert torch.equal(tensor, other[name]) == fixed, name


def test_initialize_gives_norms_of_one_and_smaller_ways_back_into_the_residual():
    model = MobileMoE(FAMILY)
    model.initialize(0, std=0.05)
    for name, tensor in model.state_dict().items():
        if name.endswith("norm.weight"):
            assert (tensor == 1).all(), name
        elif name.endswith("expert_bias"):
            assert (tensor == 0).all(), name
        else:
            back = "o_proj" in name or "down_proj" in name
            std = 0.05 / math.sqrt(6) if back else 0.05
            assert tensor.std().item() == pytest.approx(std, rel=0.08), name
            assert abs(tensor.mean().item()) < 0.1 * std, name


def test_initialize_forgets_a_trained_selection_bias():
    model = random_model(FAMILY)
    model.initialize(0)
    assert not any(moe.expert_bias.any() for moe in model.moe_layers())


@pytest.mark.parametrize("renormalise", [True, False])
def test_the_selection_bias_affects_the_choice_only(renormalise):
    config = dataclasses.replace(FAMILY, norm_topk_prob=renormalise)
    router = Router(config).double()
    torch.nn.init.normal_(router.weight, std=0.2, generator=generator(0))
    x_ND = torch.randn(50, 64, generator=generator(1), dtype=torch.float64)
    bias_E = 0.3 * torch.randn(60, generator=generator(2), dtype=torch.float64)
    plain, biased = router(x_ND, torch.zeros(60).double()), router(x_ND, bias_E)
    assert torch.equal(plain.logits_NE, biased.logits_NE)
    assert (plain.experts_NA.sort(-1).values != biased.experts_NA.sort(-1).values).any()
    score_NE = plain.logits_NE.sigmoid()
    for routing, ranked_NE in ((plain, score_NE), (biased, score_NE + bias_E)):
        assert torch.equal(routing.experts_NA, ranked_NE.topk(4).indices)
        want_NA = score_NE.gather(1, routing.experts_NA)
        want_NA = want_NA / want_NA.sum(-1, keepdim=True) if renormalise else want_NA
        assert_close(routing.weights_NA, 2.5 * want_NA, 1e-14)
    same = router(x_ND, torch.full((60,), 7.0).double())  # a bias that is the same for all changes no choice
    assert torch.equal(same.experts_NA, plain.experts_NA)
    assert torch.equal(same.weights_NA, plain.weights_NA)


def test_the_router_learns_through_the_weights_and_never_through_the_bias():
    router = Router(FAMILY)
    torch.nn.init.normal_(router.weight, std=0.2, generator=generator(0))
    bias_E = torch.zeros(60, requires_grad=True)
    routing = router(torch.randn(9, 64, generator=generator(1)), bias_E)
    (routing.weights_NA * torch.arange(4)).sum().backward()
    assert bias_E.grad is None
    chosen_E = routing.load_E() > 0
    assert torch.equal(router.weight.grad.any(dim=-1), chosen_E)
