"""INT4 stays packed: in memory, while computing, and in what a backward pass keeps."""

import pytest
import torch

from hf_models import FAMILY_LIKE, opened, tokens, write
from mobilemoe.checkpoint import Checkpoint
from mobilemoe.hf import int4
from model_configs import but

LARGE_HEAD = but(FAMILY_LIKE, vocab_size=9_600)


@pytest.fixture(scope="module", params=["int4-in", "int4-out"])
def folder(request, tmp_path_factory):
    return write(tmp_path_factory.mktemp("hf") / "model", LARGE_HEAD, request.param)


def test_memory_holds_what_the_file_holds(folder):
    with Checkpoint.open(folder) as checkpoint:
        stored = sum(info.end - info.start for info in checkpoint.tensors.values())
    assert opened(folder).get_memory_footprint() == stored


@pytest.mark.parametrize("experts", ["eager", "grouped_mm", "batched_mm"])
def test_no_more_than_a_piece_of_one_layer_is_expanded_at_a_time(experts, folder, monkeypatch):
    model, expanded, dequantize = opened(folder, experts_implementation=experts), [], int4.dequantize
    monkeypatch.setattr(int4, "_PIECE", 2**17)
    monkeypatch.setattr(
        int4, "dequantize", lambda packed, *rest: (expanded.append(packed.numel() * 2), dequantize(packed, *rest))[1]
    )
    model(tokens(1, 5))
    stack = LARGE_HEAD.num_local_experts * LARGE_HEAD.hidden_size * 2 * LARGE_HEAD.intermediate_size
    assert max(expanded) == 2**17  # of the head, which has 614,400 weights
    assert (stack in expanded) == (experts != "eager")


def test_a_backward_pass_keeps_packed_weights(folder):
    model, kept = opened(folder), []
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, 5, LARGE_HEAD.hidden_size, generator=generator, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x):
        loss = model(inputs_embeds=inputs).logits.square().mean()
    loss.backward()
    assert inputs.grad.abs().sum() > 0
    assert max(x.numel() for x in kept if x.is_floating_point()) <= 5 * LARGE_HEAD.vocab_size  # the logits
    assert any(x.dtype == torch.uint8 for x in kept)


def test_gradients_are_those_of_the_expanded_weights(folder):
    inputs = torch.randn(1, 5, LARGE_HEAD.hidden_size, generator=torch.Generator().manual_seed(0))
    found = []
    for experts in ("eager", "grouped_mm"):
        model, x = opened(folder, experts_implementation=experts), inputs.clone().requires_grad_()
        model(inputs_embeds=x).logits.square().mean().backward()
        found.append(x.grad)
    step, (one, _) = 1e-3, found
    direction = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(1))

    def loss(x):
        with torch.no_grad():
            return model(inputs_embeds=x).logits.double().square().mean()

    slope = (loss(inputs + step * direction) - loss(inputs - step * direction)) / (2 * step)
    assert torch.allclose(*found, rtol=1e-4, atol=1e-7)
    assert abs((one * direction).sum() / slope - 1) < 0.02
