"""The Triton kernels against plain PyTorch: on a GPU where there is one, else under Triton's interpreter.

N tokens, E experts, A active experts per token, D hidden, F expert width, V vocabulary.
"""

import pytest
import torch

pytest.importorskip("triton", reason="Triton comes for Linux only")
from mobilemoe.data.packing import NO_TARGET
from mobilemoe.model.experts import Routed, fused_experts, grouped_experts, loop_experts, swiglu
from mobilemoe.model.norm import rms_norm
from mobilemoe.model.rope import RopeTable, apply_rope, rope_table
from mobilemoe.train.loss import _ChunkedCrossEntropy, _FusedCrossEntropy

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def random():
    return torch.Generator().manual_seed(7)


def draw(random, *shape, dtype=torch.float32):
    return torch.randn(*shape, generator=random).to(DEVICE, dtype)


@pytest.mark.parametrize(("tokens", "experts", "active"), [(1, 2, 1), (33, 6, 2), (70, 60, 4), (40, 64, 8)])
def test_choose_takes_the_best_and_the_lowest_of_equals(random, tokens, experts, active):
    from mobilemoe.model.kernels import routing

    scores_NE = draw(random, tokens, experts).mul(3).round()  # many ties
    scores_NE[0, 0] = torch.nan
    if tokens > 1:
        scores_NE[1] = torch.nan
        scores_NE[2] = -torch.inf
        scores_NE[3] = torch.tensor([0.0, -0.0]).repeat(experts // 2)
    ranked_NE = torch.where(scores_NE.isnan(), -torch.inf, scores_NE)
    expected_NA = ranked_NE.sort(dim=-1, descending=True, stable=True).indices[:, :active]
    assert torch.equal(routing.choose(scores_NE, active), expected_NA)


@pytest.mark.parametrize(("tokens", "experts", "active"), [(1, 2, 1), (33, 6, 2), (300, 60, 4), (513, 64, 1)])
def test_sorted_pairs_are_a_stable_sort(random, tokens, experts, active):
    from mobilemoe.model.kernels import routing

    experts_NA = torch.randint(0, experts - 1, (tokens, active), generator=random).to(DEVICE)  # the last one is empty
    pair_P, slot_P, ends_E = routing.sort_pairs(experts_NA, experts)
    assert torch.equal(pair_P.long(), experts_NA.flatten().argsort(stable=True))
    assert torch.equal(slot_P[pair_P.long()].cpu(), torch.arange(tokens * active, dtype=torch.int32))
    assert torch.equal(ends_E.long(), torch.bincount(experts_NA.flatten(), minlength=experts).cumsum(0))


@pytest.mark.parametrize(("tokens", "active", "width"), [(1, 1, 8), (37, 2, 24), (20, 4, 384)])
def test_rows_and_swiglu_agree_with_plain_operations_in_values_and_gradients(random, tokens, active, width):
    from mobilemoe.model.kernels import routing, rows

    experts_NA = torch.rand(tokens, 6, generator=random).argsort(dim=1)[:, :active].to(DEVICE)
    pair_P, slot_P, ends_E = routing.sort_pairs(experts_NA, 6)
    order = pair_P.long()
    x_ND, h_P2F = draw(random, tokens, width), draw(random, tokens * active, 2 * width)
    weights_NA, y_PD = draw(random, tokens, active), draw(random, tokens * active, width)

    def both(ours, plain, *inputs):
        results = []
        for function in (ours, plain):
            leaves = [tensor.clone().requires_grad_() for tensor in inputs]
            out = function(*leaves)
            weight = torch.linspace(-1, 2, out.numel(), device=DEVICE).view_as(out)
            results.append((out, *torch.autograd.grad((out * weight).sum(), leaves)))
        for mine, theirs in zip(*results, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=2e-6, atol=2e-5)

    both(lambda x: rows.gather_rows(x, pair_P, slot_P, ends_E), lambda x: x[order // active], x_ND)
    both(
        lambda y: rows.sum_rows(y, pair_P, slot_P, ends_E, active),
        lambda y: y[slot_P.long()].unflatten(0, (tokens, active)).sum(1),
        y_PD,
    )
    both(
        lambda h, w: rows.weighted_swiglu(h, w, pair_P, ends_E),
        lambda h, w: swiglu(h) * w.flatten()[order].unsqueeze(1),
        h_P2F,
        weights_NA,
    )


@pytest.mark.parametrize(("rows", "tokens", "heads", "head_dim", "spare"), [(1, 1, 1, 8, 0), (2, 21, 3, 16, 32)])
def test_heads_are_rotated_and_normed_as_in_plain_operations(random, rows, tokens, heads, head_dim, spare):
    from mobilemoe.model.kernels.rope_qk_norm import rotate_and_norm

    table = rope_table(torch.linspace(1, 0.01, head_dim // 2), torch.arange(tokens).repeat(rows, 1), torch.float32)
    table = RopeTable(*(part.to(DEVICE) for part in table))
    wide_BTC = draw(random, rows, tokens, heads * head_dim + spare)  # q, k and v lie side by side
    dy_BTHh = draw(random, rows, tokens, heads, head_dim)

    def run(path):
        leaf = wide_BTC.clone().requires_grad_()
        y_BTHh = path(leaf[..., : heads * head_dim].unflatten(-1, (heads, head_dim)))
        return y_BTHh, *torch.autograd.grad((y_BTHh * dy_BTHh).sum(), leaf)

    ours = run(lambda x: rotate_and_norm(x.flatten(0, 1), *(t.flatten(0, 2) for t in table), 1e-5).view(x.shape))
    plain = run(lambda x: rms_norm(apply_rope(x, table), None, 1e-5))
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize(("tokens", "experts", "active", "hidden", "width"), [(64, 6, 2, 32, 16), (40, 12, 4, 64, 24)])
def test_the_fused_experts_agree_with_the_loop(random, tokens, experts, active, hidden, width):
    scores_NE = torch.rand(tokens, experts, generator=random)
    scores_NE[:, 1] = -1  # nobody's expert
    experts_NA = scores_NE.argsort(dim=1, descending=True)[:, :active].to(DEVICE)
    inputs = [
        draw(random, tokens, hidden),
        torch.rand(tokens, active, generator=random).to(DEVICE),
        draw(random, experts, hidden, 2 * width) / hidden**0.5,
        draw(random, experts, width, hidden) / width**0.5,
    ]

    def run(path, dtype):
        x, weights, gate_up, down = leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        y = path(Routed(x.to(dtype), experts_NA, weights, gate_up.to(dtype), down.to(dtype)))
        return y, *torch.autograd.grad((y.float() * torch.cos(torch.arange(hidden, device=DEVICE))).sum(), leaves)

    for ours, exact in zip(run(fused_experts, torch.bfloat16), run(loop_experts, torch.float32), strict=True):
        assert (ours.float() - exact).norm() < 1e-2 * exact.norm()


@pytest.mark.parametrize("rise", [[0.0, 90.0, 30.0], [0.0, 41.0, 200.0], [-300.0, 0.0, 39.0], [500.0, 0.0, -500.0]])
def test_cross_entropy_holds_where_later_logits_are_much_larger(random, rise):
    from mobilemoe.model.kernels.cross_entropy import cross_entropy_in_place

    logits_CV = draw(random, 4, 20_000)  # blocks of 8,192
    logits_CV += torch.tensor(rise, device=DEVICE).repeat_interleave(8192)[:20_000]
    targets_C = torch.tensor([7, 9000, 19_999, NO_TARGET], device=DEVICE)
    expected_CV = logits_CV.double().softmax(dim=1)
    losses_C = logits_CV.double().logsumexp(dim=1) - logits_CV.double().gather(1, targets_C.clamp(min=0)[:, None])[:, 0]
    for row, target in enumerate(targets_C[:3]):
        expected_CV[row, target] -= 1
    expected_CV[3] = losses_C[3] = 0
    ours_C, inverses_C = cross_entropy_in_place(logits_CV, targets_C)
    torch.testing.assert_close(ours_C.double(), losses_C, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(logits_CV.double() * inverses_C[:, None], expected_CV, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 19_000])
def test_cross_entropy_of_a_logit_that_is_not_finite_is_not_finite(random, wrong, place):
    from mobilemoe.model.kernels.cross_entropy import cross_entropy_in_place

    logits_CV = draw(random, 1, 20_000)
    logits_CV[0, place] = wrong
    assert not cross_entropy_in_place(logits_CV, torch.tensor([5], device=DEVICE))[0].isfinite()


@pytest.mark.parametrize("experts", [8, 5])
def test_the_experts_of_two_processes_add_up_to_those_of_one(random, experts):
    tokens, active, hidden, width, first = 40, 3, 32, 16, 3
    experts_NA = torch.rand(tokens, experts, generator=random).argsort(dim=1)[:, :active].to(DEVICE)
    x_ND, weights_NA = draw(random, tokens, hidden), torch.rand(tokens, active, generator=random).to(DEVICE)
    gate_up, down = draw(random, experts, hidden, 2 * width) / 6, draw(random, experts, width, hidden) / 4

    def run(path, dtype, parts):
        leaves = [tensor.clone().requires_grad_() for tensor in (x_ND, weights_NA, gate_up, down)]
        x, weights, *matrices = leaves
        y = torch.zeros(tokens, hidden, device=DEVICE)
        for part in parts:
            count = len(range(experts)[part])
            here = experts_NA - (part.start or 0)
            mine = (here >= 0) & (here < count)
            pairs = None if count == experts else int(mine.sum())
            of_part = [matrix[part].to(dtype) for matrix in matrices]
            y = y + path(Routed(x.to(dtype), here.where(mine, count), weights, *of_part, pairs=pairs)).float()
        return y, *torch.autograd.grad((y * torch.cos(torch.arange(hidden, device=DEVICE))).sum(), leaves)

    split = (slice(0, first), slice(first, experts))
    exact = run(loop_experts, torch.float32, (slice(None),))
    for path, dtype, error in ((fused_experts, torch.bfloat16, 2e-2), (grouped_experts, torch.float32, 1e-5)):
        for ours, wanted in zip(run(path, dtype, split), exact, strict=True):
            assert (ours.float() - wanted).norm() < error * wanted.norm()


@pytest.mark.parametrize(("tokens", "vocabulary"), [(1, 9), (5, 1000), (3, 20_000)])
def test_the_fused_cross_entropy_agrees_with_the_chunked_one(random, tokens, vocabulary, monkeypatch):
    monkeypatch.setattr("mobilemoe.train.loss.GPU_LOGITS", 2 * vocabulary)  # chunks of two tokens
    targets_N = torch.randint(0, vocabulary, (tokens,), generator=random).to(DEVICE)
    if tokens > 1:
        targets_N[1] = NO_TARGET
    x_ND, head_VD = draw(random, tokens, 16, dtype=torch.bfloat16), draw(random, vocabulary, 16)

    def run(function, x_ND):
        leaves = [x_ND.clone().requires_grad_(), head_VD.clone().requires_grad_()]
        loss = function.apply(*leaves, targets_N)
        return loss, *torch.autograd.grad(loss * 0.5, leaves)

    for ours, exact in zip(run(_FusedCrossEntropy, x_ND), run(_ChunkedCrossEntropy, x_ND.float()), strict=True):
        assert (ours.float() - exact).norm() < 1e-2 * exact.norm()
