"""The promises of Muon: steps of matrices have singular values near one, and everything else is updated by AdamW."""

import math

import pytest
import torch

from mobilemoe.model import MobileMoE
from mobilemoe.presets import family_member
from mobilemoe.train import qat
from mobilemoe.train.muon import COEFFICIENTS, ITERATIONS, make_muon, orthogonalize
from mobilemoe.train.optimizer import make_optimizer, moments, restore_moments, updates
from mobilemoe.train.recipe import QatTable
from train_runs import table

pytest_plugins = ["train_runs"]
pytestmark = pytest.mark.usefixtures("one_thread")

TINY = family_member(32, expansion=2, granularity=4, layers=2, vocab_size=96)
MATRICES = (
    *(f"{kind}_proj.weight" for kind in ("q", "k", "v", "o", "gate", "up", "down")),
    "gate_up_proj",
    "down_proj",
)


def initialized(seed=0):
    model = MobileMoE(TINY)
    model.initialize(seed)
    return model


def fill_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def reference_orthogonal(x_RC):
    """The iteration on singular values alone, which is what it does to a matrix; in float64."""
    u, s, v = torch.linalg.svd(x_RC.double(), full_matrices=False)
    s = s / x_RC.double().norm()
    for _ in range(ITERATIONS):
        s = COEFFICIENTS[0] * s + COEFFICIENTS[1] * s**3 + COEFFICIENTS[2] * s**5
    return u @ s.diag() @ v


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 8, 40), (3, 40, 8), (2, 1, 7)])
def test_every_singular_value_comes_near_one(shape):
    x_MRC = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 100
    x_MRC[0] *= 1e-6
    found_MRC = orthogonalize(x_MRC)
    assert found_MRC.shape == x_MRC.shape
    values = torch.linalg.svdvals(found_MRC)
    assert values.max() < 1.3
    assert values.min() > (0.6 if shape[1] != shape[2] else 0.1)  # a square matrix may have a value near nothing
    for x_RC, found_RC in zip(x_MRC, found_MRC, strict=True):
        torch.testing.assert_close(found_RC.double(), reference_orthogonal(x_RC), rtol=0, atol=1e-4)


def test_a_batch_of_matrices_is_each_of_them():
    x_MRC = torch.randn(5, 12, 20, generator=torch.Generator().manual_seed(2))
    each_MRC = torch.cat([orthogonalize(x_MRC[number : number + 1]) for number in range(5)])
    torch.testing.assert_close(orthogonalize(x_MRC), each_MRC, rtol=1e-5, atol=1e-6)


def test_no_gradient_is_no_step():
    assert orthogonalize(torch.zeros(2, 4, 6)).eq(0).all()


def test_steps_are_those_of_a_plain_reference():
    model, rate, decay = initialized(), 0.02, 0.3
    optimizer = make_muon(model, table(weight_decay=decay, learning_rate=rate))
    weights = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    momenta = {name: torch.zeros_like(weight) for name, weight in weights.items()}

    def update(direction):
        scale = 0.2 * math.sqrt(max(direction.shape))
        return scale * reference_orthogonal(direction)

    for seed in (3, 4):
        fill_gradients(model, seed)
        for name, parameter in model.named_parameters():
            if not name.endswith(MATRICES):
                continue
            grad = parameter.grad.double()
            momenta[name] = 0.95 * momenta[name] + grad
            direction = grad + 0.95 * momenta[name]
            if name.endswith("gate_up_proj"):  # gate and up of each expert are matrices of their own
                gates, ups = direction.chunk(2, dim=-1)
                change = torch.stack(
                    [torch.cat([update(g), update(u)], dim=-1) for g, u in zip(gates, ups, strict=True)]
                )
            else:
                change = update(direction) if direction.ndim == 2 else torch.stack([update(d) for d in direction])
            weights[name] = weights[name] * (1 - rate * decay) - rate * change
        optimizer.step()
    compared = 0
    for name, parameter in model.named_parameters():
        if name.endswith(MATRICES):
            torch.testing.assert_close(parameter.double(), weights[name], rtol=0, atol=1e-4 * rate, msg=name)
            compared += 1
    assert compared == 2 * 9


def test_what_is_no_hidden_matrix_steps_as_under_adamw_bit_for_bit():
    ours, theirs = initialized(), initialized()
    optimizers = [make_muon(ours, table()), make_optimizer(theirs, table())]
    for seed in (5, 6):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            fill_gradients(model, seed)
            optimizer.step()
    expected = dict(theirs.named_parameters())
    same = {name for name, parameter in ours.named_parameters() if torch.equal(parameter, expected[name])}
    others = {name for name in expected if not name.endswith(MATRICES)}
    assert same == others
    assert "model.embed_tokens.weight" in same
    assert "model.layers.0.feed_forward.router.weight" in same


def test_learnt_scales_step_as_under_adamw_and_are_not_decayed():
    """At a tenth of the rate: a scale moves 32 weights at once."""
    ours, theirs = initialized(), initialized()
    for model in (ours, theirs):
        qat.prepare(model, QatTable(learn_scales=True))
    before = {name: parameter.detach().clone() for name, parameter in ours.named_parameters()}
    optimizers = [make_muon(ours, table()), make_optimizer(theirs, table())]
    for model, optimizer in zip((ours, theirs), optimizers, strict=True):
        fill_gradients(model, 5)
        for group in optimizer.param_groups:
            group["lr"] *= group.get("factor", 1.0)
        optimizer.step()
    scales = {name: scale for name, scale in ours.named_parameters() if name.endswith("_scale")}
    assert len(scales) == 1 + 2 * 9  # of the embedding, four linear maps, a shared expert and the experts
    for name, scale in scales.items():
        assert torch.equal(scale, theirs.get_parameter(name)), name
        assert (scale - before[name]).abs().max() <= 0.11 * table().learning_rate, name


def test_a_step_has_the_size_of_adamws():
    """So that a recipe's learning rate means the same: 0.2 times it, in the root mean square of full-rank steps."""
    model = initialized()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    fill_gradients(model, 7)
    make_muon(model, table(learning_rate=0.01, weight_decay=0.0)).step()
    steps = {name: parameter - before[name] for name, parameter in model.named_parameters() if name.endswith(MATRICES)}
    assert len(steps) >= 8
    for name, step in steps.items():
        assert step.square().mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=0.3), name


def test_frozen_weights_are_left_alone():
    model = initialized()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.endswith("q_proj.weight")
    optimizer = make_muon(model, table())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


def test_restored_state_goes_on_bit_for_bit():
    first, second = initialized(), initialized(seed=1)
    optimizer = make_muon(first, table())
    for seed in range(3):
        fill_gradients(first, seed)
        optimizer.step()
    saved = {name: value.numpy().copy() for name, value in moments(first, optimizer).items()}
    assert saved["model.layers.0.feed_forward.experts.gate_up_proj/momentum"].any()
    assert updates(optimizer) == 3
    second.load_state_dict(first.state_dict())
    resumed = make_muon(second, table())
    restore_moments(second, resumed, saved, 3)
    for seed in (3, 4):
        for model, chosen in ((first, optimizer), (second, resumed)):
            fill_gradients(model, seed)
            chosen.step()
    for ours, theirs in zip(second.parameters(), first.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for name, value in moments(second, resumed).items():
        assert torch.equal(value, moments(first, optimizer)[name])
