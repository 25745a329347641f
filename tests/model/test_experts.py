"""The three expert paths are one function, whatever the router chose, and capacity drops what it should."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mobilemoe.model.experts import Experts, Routed, capacity_experts, grouped_experts, loop_experts
from mobilemoe.model.router import Router
from mobilemoe.presets import family_member
from random_models import random_choice


def roomy_experts(*arguments: Tensor) -> Tensor:
    """Drop-and-pad with room for every token: each expert could hold all N A pairs."""
    experts, pairs = arguments[3].shape[0], arguments[1].numel()
    return capacity_experts(Routed(*arguments), float(experts) if pairs else 1.0)


PATHS = {
    "loop": lambda *arguments: loop_experts(Routed(*arguments)),
    "grouped": lambda *arguments: grouped_experts(Routed(*arguments)),
    "capacity": roomy_experts,
}
FAST = ("grouped", "capacity")

# tokens, hidden, experts, active, expert width
SHAPES = [
    (1, 32, 4, 2, 16),
    (1, 8, 1, 1, 8),
    (2, 16, 16, 1, 24),  # more experts than pairs
    (3, 24, 60, 4, 8),  # more experts than tokens
    (7, 48, 5, 3, 16),
    (33, 32, 6, 6, 8),  # every expert by every token
    (64, 64, 12, 4, 32),
]


def random_arguments(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    tokens, hidden, experts, active, width = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    experts_NA = random_choice(tokens, experts, active, generator)
    x_ND, weights_NA = normal(tokens, hidden), normal(tokens, active)
    gate_up_ED2F, down_EFD = normal(experts, hidden, 2 * width), normal(experts, width, hidden)
    floats = [x_ND, weights_NA, gate_up_ED2F / hidden**0.5, down_EFD / width**0.5]
    x_ND, weights_NA, gate_up_ED2F, down_EFD = (t.to(dtype) for t in floats)
    return [x_ND, experts_NA, weights_NA, gate_up_ED2F, down_EFD]


def slow_experts(
    x_ND: Tensor, experts_NA: Tensor, weights_NA: Tensor, gate_up_ED2F: Tensor, down_EFD: Tensor
) -> Tensor:
    """The definition, one pair at a time."""
    rows, width = [], down_EFD.shape[1]
    for n, experts in enumerate(experts_NA.tolist()):
        row = torch.zeros_like(x_ND[n])
        for a, expert in enumerate(experts):
            both = x_ND[n] @ gate_up_ED2F[expert]
            hidden = both[:width] * both[:width].sigmoid() * both[width:]
            row = row + weights_NA[n, a] * (hidden @ down_EFD[expert])
        rows.append(row)
    return torch.stack(rows)


def with_gradients(compute: Callable[..., Tensor], arguments: list[Tensor]) -> dict[str, Tensor]:
    """The output, and the gradients of a fixed random linear function of it."""
    x_ND, experts_NA, *rest = arguments
    leaves = [t.clone().requires_grad_() for t in (x_ND, *rest)]
    y_ND = compute(leaves[0], experts_NA, *leaves[1:])
    assert y_ND.shape == x_ND.shape
    assert y_ND.dtype == x_ND.dtype
    toward_ND = torch.randn(y_ND.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    gradients = torch.autograd.grad((y_ND * toward_ND.to(y_ND.dtype)).sum(), leaves)
    return dict(zip(("y", "x", "weights", "gate_up", "down"), (y_ND.detach(), *gradients), strict=True))


def assert_same(path: str, arguments: list[Tensor], tolerance: float) -> None:
    """`path` agrees with the loop, and the loop with the definition, in float64 on the same numbers, up to `tolerance`
    of the largest."""
    exact = [t.double() if t.is_floating_point() else t for t in arguments]
    got = with_gradients(PATHS[path], arguments)
    want = with_gradients(slow_experts if path == "loop" else PATHS["loop"], exact)
    for name, tensor in got.items():
        error = (tensor.double() - want[name]).abs().max()
        assert error <= tolerance * want[name].abs().max(), (name, float(error))


TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 5e-2}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_every_path_gives_the_values_and_gradients_of_the_definition(path, shape, dtype):
    for seed in range(2):
        assert_same(path, random_arguments(shape, dtype, seed), TOLERANCE[dtype])


@DTYPES
@pytest.mark.parametrize("chosen", [[0, 1], [2, 4], [4, 3]])
@pytest.mark.parametrize("path", FAST)
def test_all_tokens_on_the_same_experts(path, chosen, dtype):
    """First, middle and last experts take everything; the others get no token and a gradient of exactly zero."""
    arguments = random_arguments((17, 32, 5, 2, 16), dtype)
    arguments[1] = torch.tensor(chosen).expand(17, 2).contiguous()
    assert_same(path, arguments, TOLERANCE[dtype])
    got = with_gradients(PATHS[path], arguments)
    idle = [expert for expert in range(5) if expert not in chosen]
    for name in ("gate_up", "down"):
        assert not got[name][idle].any()
        assert got[name][chosen].flatten(1).any(dim=1).all()


@DTYPES
@pytest.mark.parametrize("idle", [0, 2, 5])
@pytest.mark.parametrize("path", FAST)
def test_an_expert_without_tokens_changes_nothing(path, idle, dtype):
    arguments = random_arguments((23, 32, 6, 3, 8), dtype)
    others = torch.tensor([expert for expert in range(6) if expert != idle])
    arguments[1] = others[random_choice(23, 5, 3, torch.Generator().manual_seed(3))]
    assert_same(path, arguments, TOLERANCE[dtype])
    poisoned = [t.clone() for t in arguments]
    poisoned[3][idle], poisoned[4][idle] = torch.nan, torch.inf
    torch.testing.assert_close(PATHS[path](*poisoned), PATHS[path](*arguments), rtol=0, atol=0)


@pytest.mark.parametrize("path", PATHS)
def test_no_tokens_give_no_rows(path):
    assert PATHS[path](*random_arguments((0, 16, 4, 2, 8), torch.float32)).shape == (0, 16)


@DTYPES
@pytest.mark.parametrize("path", PATHS)
def test_a_nan_token_stays_alone(path, dtype):
    arguments = random_arguments((12, 32, 4, 2, 16), dtype)
    clean_ND = PATHS[path](*arguments)
    arguments[0][5, 7] = torch.nan
    arguments[2][8, 1] = torch.nan
    y_ND = PATHS[path](*arguments)
    assert y_ND[[5, 8]].isnan().all()
    others = [n for n in range(12) if n not in (5, 8)]
    torch.testing.assert_close(y_ND[others], clean_ND[others], rtol=0, atol=0)


@pytest.mark.parametrize("widths", [(36, 8), (32, 20), (33, 7)], ids=str)
def test_bf16_takes_any_width(widths):
    hidden, width = widths
    assert_same("grouped", random_arguments((6, hidden, 4, 2, width), torch.bfloat16), TOLERANCE[torch.bfloat16])


def slow_capacity(arguments: list[Tensor], factor: float) -> tuple[Tensor, list[tuple[int, int]]]:
    """Tokens in order, best choice first, take a place at their experts while there is one; and who found none."""
    x_ND, experts_NA, weights_NA, gate_up_ED2F, down_EFD = arguments
    experts = gate_up_ED2F.shape[0]
    places, dropped = [math.ceil(factor * experts_NA.numel() / experts)] * experts, []
    kept_NA = weights_NA.clone()
    for n, a in itertools.product(*map(range, experts_NA.shape)):
        expert = int(experts_NA[n, a])
        if places[expert]:
            places[expert] -= 1
        else:
            dropped.append((n, a))
            kept_NA[n, a] = 0
    return slow_experts(x_ND, experts_NA, kept_NA, gate_up_ED2F, down_EFD), dropped


@pytest.mark.parametrize("factor", [0.01, 0.5, 1.0, 1.25, 1.5, 4.0])
@pytest.mark.parametrize("shape", [(1, 8, 4, 2, 8), (16, 16, 4, 1, 8), (21, 16, 6, 3, 8), (40, 8, 5, 2, 8)], ids=str)
def test_capacity_drops_exactly_the_later_tokens(shape, factor):
    arguments = random_arguments(shape, torch.float64, seed=5)
    if shape[0] == 40:  # a crowd at one expert
        arguments[1] = torch.tensor([2, 0]).expand(40, 2).clone()
        arguments[1][::3] = torch.tensor([1, 2])
    want_ND, dropped = slow_capacity(arguments, factor)
    assert dropped or factor >= 1 or shape[0] == 1
    torch.testing.assert_close(capacity_experts(Routed(*arguments), factor), want_ND, rtol=1e-12, atol=1e-13)


def test_capacity_holds_in_training_only():
    config = family_member(32, expansion=4, granularity=4, layers=1, vocab_size=8)
    module = Experts(config).double()
    experts, width = config.num_local_experts, config.intermediate_size
    arguments = random_arguments((30, 32, experts, 2, width), torch.float64)
    module.gate_up_proj.data, module.down_proj.data = arguments[3], arguments[4]
    all_ND, some_ND = loop_experts(Routed(*arguments)), slow_capacity(arguments, 0.5)[0]
    assert not torch.allclose(all_ND, some_ND)
    for capacity_factor, training, want_ND in ((None, True, all_ND), (0.5, True, some_ND), (0.5, False, all_ND)):
        module.capacity_factor = capacity_factor
        module.train(training)
        torch.testing.assert_close(module(*arguments[:3]), want_ND, rtol=1e-12, atol=1e-13)


def test_a_dropped_pair_gets_no_gradient():
    arguments = random_arguments((20, 16, 4, 2, 8), torch.float64)
    _, dropped = slow_capacity(arguments, 0.5)
    assert dropped
    x_ND, experts_NA, weights_NA, *matrices = arguments
    weights_NA.requires_grad_()
    capacity_experts(Routed(x_ND, experts_NA, weights_NA, *matrices), 0.5).sum().backward()
    assert {tuple(pair) for pair in (weights_NA.grad == 0).nonzero().tolist()} == set(dropped)


def test_a_tail_never_changes_what_earlier_tokens_keep():
    """With the same number of places, tokens that come later cannot push out earlier ones."""
    arguments = random_arguments((24, 16, 4, 2, 8), torch.float64)
    head = [t[:12] if index < 3 else t for index, t in enumerate(arguments)]
    full_ND, head_ND = capacity_experts(Routed(*arguments), 0.5), capacity_experts(Routed(*head), 1.0)
    torch.testing.assert_close(full_ND[:12], head_ND, rtol=1e-13, atol=1e-14)


CONFIG = family_member(32, expansion=4, granularity=4, layers=1, vocab_size=8)  # 14 experts, 2 active


def routed(score: str, poison: str) -> tuple[Tensor, Router, Tensor]:
    generator = torch.Generator().manual_seed(1)
    router = Router(CONFIG if score == "sigmoid" else family_member(32, layers=1, vocab_size=8, router_score=score))
    nn.init.normal_(router.weight, generator=generator)
    x_ND = torch.randn(10, 32, generator=generator)
    bias_E = 0.1 * torch.randn(len(router.weight), generator=generator)
    with torch.no_grad():
        if poison == "token":
            x_ND[4] = torch.nan
        elif poison == "infinite token":
            x_ND[4, ::2], x_ND[4, 1::2] = torch.inf, -torch.inf
        elif poison == "expert":
            router.weight[3] = torch.nan
        elif poison == "bias":
            bias_E[5] = torch.nan
        elif poison == "everything":
            router.weight.fill_(torch.nan)
    return x_ND, router, bias_E


@pytest.mark.parametrize("poison", ["token", "infinite token", "expert", "bias", "everything"])
@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
def test_nan_in_the_router_leaves_a_valid_choice_and_the_paths_agreed(score, poison):
    x_ND, router, bias_E = routed(score, poison)
    routing = router(x_ND, bias_E if score == "sigmoid" else None)
    experts, active = len(router.weight), router.config.num_experts_per_tok
    for chosen in routing.experts_NA.tolist():
        assert len(set(chosen)) == active
        assert all(0 <= expert < experts for expert in chosen)
    assert routing.load_E().sum() == 10 * active
    generator = torch.Generator().manual_seed(2)
    gate_up_ED2F = torch.randn(experts, 32, 16, generator=generator)
    down_EFD = torch.randn(experts, 8, 32, generator=generator)
    arguments = (x_ND, routing.experts_NA, routing.weights_NA.detach(), gate_up_ED2F, down_EFD)
    want_ND = loop_experts(Routed(*arguments))
    for path in FAST:
        torch.testing.assert_close(PATHS[path](*arguments), want_ND, rtol=1e-4, atol=1e-4, equal_nan=True)
    nan_N = want_ND.isnan().any(dim=1)
    if poison in ("token", "infinite token"):
        assert nan_N.tolist() == [n == 4 for n in range(10)]
    elif poison == "bias" or (poison == "expert" and score == "sigmoid"):  # a softmax spreads the nan
        assert not nan_N.any()
        assert not (routing.experts_NA == {"expert": 3, "bias": 5}[poison]).any() or score == "softmax"
    else:
        assert nan_N.all()
