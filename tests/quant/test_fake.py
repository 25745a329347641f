"""Fake quantisation is the real one, to the bit, and its gradients are those that the papers give."""

import numpy as np
import pytest
import torch

from mobilemoe.checkpoint import int4
from mobilemoe.quant.fake import SMALLEST_SCALE, fake_bf16, fake_int4, fake_int8, first_scale


def really(w: np.ndarray, dim: int = -1) -> np.ndarray:
    """Quantised by the checkpoint room, and read back."""
    axis = "out" if dim == -1 else "in"
    if w.ndim == 3:
        return int4.dequantize_experts(*int4.quantize(int4.arrange_experts(w, axis)), axis)
    return int4.dequantize(*int4.quantize(w))


def weights_of(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Normal weights whose groups differ in size from below fp16's range to its end; some are zero."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(shape).astype(np.float32)
    w *= rng.choice([0, 1e-9, 3e-7, 1e-6, 1e-5, 1e-3, 0.02, 1, 1e3, 1e5], (*shape[:-1], 1)).astype(np.float32)
    return w


SHAPES = [((32,), -1), ((1, 32), -1), ((7, 96), -1), ((300, 64), -1), ((3, 5, 64), -1), ((3, 64, 5), -2)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("shape", "dim"), [*SHAPES, ((4, 32, 32), -1), ((4, 32, 32), -2)])
def test_weights_are_those_of_the_file_to_the_bit(shape, dim, seed):
    w = weights_of(shape, seed)
    got = fake_int4(torch.from_numpy(w), dim)
    assert got.dtype == torch.float32
    np.testing.assert_array_equal(got.numpy(), really(w, dim))


def test_every_scale_that_fp16_can_hold_is_rounded_as_the_file_rounds_it():
    exact = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)  # 0 to 65504
    middle = (exact[1:] + exact[:-1]) / 2
    around = np.concatenate([exact, middle, np.nextafter(middle, 0), np.nextafter(middle, np.float32(np.inf))])
    w = np.zeros((around.size, 32), np.float32)
    w[:, 0] = around * np.float32(7.5)
    w[:, 1:] = w[:, :1] * np.linspace(-1, 1, 31, dtype=np.float32)
    np.testing.assert_array_equal(fake_int4(torch.from_numpy(w)).numpy(), really(w))


def test_quotients_half_way_between_integers_go_to_the_even_one():
    w = np.zeros((1000, 32), np.float32)
    w[:, 0] = np.float32(7.5) * np.linspace(0.5, 1, 1000).astype(np.float16).astype(np.float32)
    scale = w[:, :1] / np.float32(7.5)
    halves = (np.arange(-8, 7) + 0.5).astype(np.float32)
    near = scale * np.stack([halves, np.nextafter(halves, -9), np.nextafter(halves, 9)]).reshape(1, -1)[:, :31]
    w[:, 1:] = np.clip(near, -w[:, :1], w[:, :1])
    np.testing.assert_array_equal(fake_int4(torch.from_numpy(w)).numpy(), really(w))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_are_computed_in_fp32_and_given_back(dtype):
    w = torch.from_numpy(weights_of((20, 64), 0)).to(dtype)
    got = fake_int4(w)
    assert got.dtype == dtype
    assert torch.equal(got, torch.from_numpy(really(w.float().numpy())).to(dtype))


def test_a_transposed_weight_is_no_other():
    w = torch.from_numpy(weights_of((64, 32), 1))
    assert torch.equal(fake_int4(w.t().contiguous()), fake_int4(w.t()))


@pytest.mark.parametrize(("shape", "dim"), SHAPES)
def test_the_gradient_passes_as_if_nothing_were_rounded(shape, dim):
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(shape, generator=generator, requires_grad=True)
    upstream = torch.randn(shape, generator=generator)
    fake_int4(w, dim).backward(upstream)
    assert torch.equal(w.grad, upstream)


# ---- learnt scales


@pytest.mark.parametrize(("shape", "dim"), SHAPES)
def test_learnt_scales_begin_as_those_of_the_file(shape, dim):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    scale = first_scale(w, dim)
    stored = int4.scales(w.numpy() if dim == -1 else int4.arrange_experts(w.numpy(), "in"))
    np.testing.assert_array_equal(scale.numpy().astype(np.float16), stored)
    assert torch.equal(fake_int4(w, dim, scale), fake_int4(w, dim))


@pytest.mark.parametrize("dim", [-1, -2])
def test_the_gradients_of_learnt_scales_are_those_of_lsq(dim):
    generator = torch.Generator().manual_seed(0)
    w_EIO = torch.randn(2, 64, 32, generator=generator)
    scale = (first_scale(w_EIO, dim) * (0.3 + torch.rand(first_scale(w_EIO, dim).shape, generator=generator))).half()
    upstream = torch.randn(w_EIO.shape, generator=generator)
    w_EIO.requires_grad_()
    learnt = scale.float().requires_grad_()
    fake_int4(w_EIO, dim, learnt).backward(upstream)

    # Weight by weight, by equations 3 and 5 of the paper.
    want_w, want_scale = torch.zeros_like(w_EIO), torch.zeros_like(learnt)
    clamped = 0
    for place in np.ndindex(*w_EIO.shape):
        expert, i, o = place
        group = (expert, i, o // 32) if dim == -1 else (expert, o, i // 32)
        ratio, grad = (w_EIO[place] / learnt[group]).item(), upstream[place].item()
        if -8 < ratio < 7:
            want_w[place] = grad
            want_scale[group] += grad * (round(ratio) - ratio)
        else:
            clamped += 1
            want_scale[group] += grad * (-8 if ratio < 0 else 7)
    assert clamped > 100
    assert torch.equal(w_EIO.grad, want_w)
    torch.testing.assert_close(learnt.grad, want_scale / (32 * 7) ** 0.5, rtol=1e-4, atol=1e-4)


def test_a_learnt_scale_is_used_as_fp16_and_never_below_its_smallest_number():
    w = torch.full((1, 32), 0.3)
    for scale, used in ((0.1, float(np.float16(0.1))), (-1.0, SMALLEST_SCALE), (0.0, SMALLEST_SCALE)):
        got = fake_int4(w, -1, torch.tensor([[scale]]))
        assert torch.equal(got, torch.full((1, 32), min(7, round(0.3 / used)) * used))


# ---- activations and vectors


def test_activations_are_rounded_for_each_token_and_32_channels():
    x = torch.randn(5, 3, 96, generator=torch.Generator().manual_seed(0))
    x[0, 0, :32] = 0
    x[1, 1, 40] = 1000
    got = fake_int8(x)
    for want, found in zip(x.reshape(-1, 32).double(), got.reshape(-1, 32).double(), strict=True):
        step = want.abs().max() / 127
        assert (found - want).abs().max() <= step * 0.5001
        if step:
            torch.testing.assert_close(found / step, (found / step).round(), rtol=0, atol=1e-4)
            assert ((found / step).round() != (want / step).round()).sum() == 0
    assert got[0, 0, :32].count_nonzero() == 0


def test_activations_keep_dtype_and_gradient():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 64, generator=generator, dtype=torch.bfloat16, requires_grad=True)
    upstream = torch.randn(4, 64, generator=generator, dtype=torch.bfloat16)
    y = fake_int8(x)
    y.backward(upstream)
    assert y.dtype == torch.bfloat16
    assert torch.equal(x.grad, upstream)


def test_vectors_become_the_nearest_bfloat16():
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-30, 30, 10_000)
    x[:3] = torch.tensor([0.0, 1 + 2**-8, 1 + 3 * 2**-8])  # zero and ties
    x.requires_grad_()
    y = fake_bf16(x)
    assert torch.equal(y, x.bfloat16().float())
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("kind", ["nearest", "learnt", "activations", "vectors"])
def test_compiled_it_has_the_same_gradients(kind):
    """The compiler of torch 2.11 gave none where the same was written as an autograd.Function."""
    w = torch.from_numpy(weights_of((2, 64, 64), 5)).clamp(-1, 1).requires_grad_()
    scale = first_scale(w.detach(), -2).requires_grad_()
    functions = {
        "nearest": lambda w, scale: fake_int4(w, -2),
        "learnt": lambda w, scale: fake_int4(w, -2, scale),
        "activations": lambda w, scale: fake_int8(w),
        "vectors": lambda w, scale: fake_bf16(w),
    }
    inputs = (w, scale) if kind == "learnt" else (w,)

    def gradients(function):
        return torch.autograd.grad(function(w, scale).square().sum(), inputs)

    eager, compiled = gradients(functions[kind]), gradients(torch.compile(functions[kind], backend="aot_eager"))
    assert eager[0].count_nonzero() > 1000
    for expected, found in zip(eager, compiled, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.slow  # the compiler itself takes half a minute
def test_compiled_it_is_the_same_to_the_bit():
    w = torch.from_numpy(weights_of((2, 64, 64), 5))
    scale = first_scale(w) * 0.7

    def all_kinds(w, scale):
        return fake_int4(w, -1), fake_int4(w, -2), fake_int4(w, -1, scale), fake_bf16(w)

    for compiled, eager in zip(torch.compile(all_kinds, fullgraph=True)(w, scale), all_kinds(w, scale), strict=True):
        assert torch.equal(compiled, eager)
