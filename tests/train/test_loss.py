"""Promises of train's losses: cross entropy and z-loss against something simpler."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from mobilemoe.data.packing import NO_TARGET
from mobilemoe.model.router import Routing
from mobilemoe.train import loss as loss_module
from mobilemoe.train.loss import cross_entropy_sum, router_z_loss

pytest_plugins = ["train_runs"]
pytestmark = pytest.mark.usefixtures("one_thread")


# ---- cross entropy


def reference(x_ND, head_VD, targets_N):
    """Loss and gradients by PyTorch's own cross entropy, over all logits at once."""
    x_ND, head_VD = x_ND.detach().clone().requires_grad_(), head_VD.detach().clone().requires_grad_()
    loss = cross_entropy(x_ND @ head_VD.t(), targets_N, ignore_index=NO_TARGET, reduction="sum")
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
    targets_N[torch.rand(tokens, generator=generator) < ignored] = NO_TARGET
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
    assert (x_gradient[targets_N == NO_TARGET] == 0).all()
    assert (x_gradient[targets_N != NO_TARGET] != 0).any(dim=1).all()


# ---- z-loss


def routing(logits_NE):
    return Routing(logits_NE, torch.zeros(len(logits_NE), 1, dtype=torch.long), torch.ones(len(logits_NE), 1))


def test_z_loss_is_the_mean_square_of_the_log_sum_summed_over_layers():
    layers = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = 0.0
    for logits_NE in layers:
        for row in logits_NE.tolist():
            expected += math.log(sum(map(math.exp, row))) ** 2 / 5
    assert router_z_loss([routing(logits) for logits in layers]).item() == pytest.approx(expected, rel=1e-12)


def test_z_loss_pulls_the_log_sum_towards_zero():
    logits_NE = torch.full((3, 4), 5.0, requires_grad=True)
    router_z_loss([routing(logits_NE)]).backward()
    assert (logits_NE.grad > 0).all()
