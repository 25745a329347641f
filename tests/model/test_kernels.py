"""The Triton kernels against plain PyTorch: on a GPU where there is one, else under Triton's interpreter.

N tokens, E experts, A active experts per token, D hidden, F expert width, V vocabulary.
"""

import pytest
import torch

pytest.importorskip("triton", reason="Triton comes for Linux only")
from mobilemoe.data.packing import NO_TARGET
from mobilemoe.model.block import Block
from mobilemoe.model.experts import Routed, fused_experts, grouped_experts, loop_experts, swiglu
from mobilemoe.model.norm import rms_norm
from mobilemoe.model.rope import RopeTable, apply_rope, rope_frequencies, rope_table
from mobilemoe.presets import family_member
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


@pytest.mark.parametrize(("tokens", "active", "width", "terms"), [(1, 1, 8, 0), (37, 2, 24, 1), (20, 4, 384, 2)])
def test_rows_and_swiglu_agree_with_plain_operations_in_values_and_gradients(random, tokens, active, width, terms):
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
        lambda y, *more: rows.sum_rows(y, pair_P, slot_P, ends_E, active, more),
        lambda y, *more: y[slot_P.long()].unflatten(0, (tokens, active)).sum(1) + sum(more),
        y_PD,
        *(draw(random, tokens, width) for _ in range(terms)),
    )
    both(
        lambda h, w: rows.weighted_swiglu(h, w, pair_P, ends_E),
        lambda h, w: swiglu(h) * w.flatten()[order].unsqueeze(1),
        h_P2F,
        weights_NA,
    )


@pytest.mark.parametrize(("tokens", "width"), [(1, 8), (37, 24), (5, 768)])
def test_a_sum_and_its_norm_agree_with_plain_operations_in_values_and_gradients(random, tokens, width):
    from mobilemoe.model.kernels.norm import add_and_norm

    inputs = [draw(random, tokens, width), draw(random, tokens, width), draw(random, width)]
    slopes = draw(random, tokens, width), draw(random, tokens, width)

    def run(path):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        parts = path(*leaves)
        weighted = sum((part * slope).sum() for part, slope in zip(parts, slopes, strict=True))
        return *parts, *torch.autograd.grad(weighted, leaves)

    ours = run(lambda x, y, weight: add_and_norm(x, y, weight, 1e-5)[:2])
    plain = run(lambda x, y, weight: (x + y, rms_norm(x + y, weight, 1e-5)))
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize(("rows", "tokens", "heads", "kv_heads", "head_dim"), [(1, 1, 1, 1, 8), (2, 21, 6, 2, 16)])
def test_heads_are_rotated_and_normed_as_in_plain_operations(random, rows, tokens, heads, kv_heads, head_dim):
    from mobilemoe.model.kernels.rope_qk_norm import rotate_and_norm

    table = rope_table(torch.linspace(1, 0.01, head_dim // 2), torch.arange(tokens).repeat(rows, 1), torch.float32)
    table = RopeTable(*(part.to(DEVICE) for part in table))
    counts = [heads, kv_heads, kv_heads]
    qkv_BTCh = draw(random, rows, tokens, sum(counts), head_dim)
    slopes = draw(random, rows, tokens, sum(counts), head_dim).split(counts, dim=2)

    def run(path):
        leaf = qkv_BTCh.clone().requires_grad_()
        parts = path(leaf)
        weighted = sum((part * slope).sum() for part, slope in zip(parts, slopes, strict=True))
        return *parts, *torch.autograd.grad(weighted, leaf)

    def ours_of(x):
        table_Nh = (part.flatten(0, 2) for part in table)
        parts = rotate_and_norm(x.flatten(0, 1).flatten(1), *table_Nh, 1e-5, heads, kv_heads)
        return [part.unflatten(0, (rows, tokens)) for part in parts]

    def plain_of(x):
        q, k, v = x.split(counts, dim=2)
        return [rms_norm(apply_rope(q, table), None, 1e-5), rms_norm(apply_rope(k, table), None, 1e-5), v]

    ours, plain = run(ours_of), run(plain_of)
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_the_shared_expert_and_the_router_together_are_what_they_are_apart(random, weights):
    from mobilemoe.model.router_product import shared_and_router

    tokens, hidden, width, experts = 37, 32, 24, 6
    x_ND = draw(random, tokens, hidden, dtype=torch.bfloat16)
    shapes = (width, hidden), (width, hidden), (experts, hidden)
    matrices = [draw(random, *shape, dtype=weights) / hidden**0.5 for shape in shapes]
    slopes = draw(random, tokens, width), draw(random, tokens, experts)

    def run(path, dtype):
        leaves = [tensor.to(dtype or tensor.dtype).requires_grad_() for tensor in (x_ND.clone(), *matrices)]
        parts = path(*leaves)
        weighted = sum((part * slope).sum() for part, slope in zip(parts, slopes, strict=True))
        return *parts, *torch.autograd.grad(weighted, leaves)

    def plain(x, gate, up, router):
        return torch.nn.functional.silu(x @ gate.t()) * (x @ up.t()), x @ router.t()

    (act, logits, *ours), exact = run(lambda *leaves: shared_and_router(*leaves)[:2], None), run(plain, torch.float64)
    torch.testing.assert_close(logits.double(), exact[1], rtol=2e-6, atol=2e-5)  # the router's precision is fp32's
    assert [tensor.dtype for tensor in ours] == [torch.bfloat16, *[weights] * 3]
    for mine, wanted in zip((act, *ours), (exact[0], *exact[2:]), strict=True):
        assert (mine.double() - wanted).norm() < 1e-2 * wanted.norm()


@pytest.mark.parametrize("experts", [6, 8, 9])
def test_the_compiler_is_told_the_shapes_that_the_routers_products_have(random, experts):
    from mobilemoe.model import router_product as products

    x_ND, gate_WD, up_WD, router_ED = (draw(random, rows, 32, dtype=torch.bfloat16) for rows in (37, 24, 24, experts))
    act_NW, logits_NE, gate_up_N2W = products.shared_and_router(x_ND, gate_WD, up_WD, router_ED)
    calls = (
        (products.split_product, (x_ND, router_ED)),
        (products.shared_and_router, (x_ND, gate_WD, up_WD, router_ED)),
        (products._shared_and_router_backward, (act_NW, logits_NE, gate_up_N2W, x_ND, gate_WD, up_WD, router_ED)),
    )
    for product, values in calls:
        torch.library.opcheck(product, values, test_utils="test_faketensor")


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


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
def test_a_block_of_kernels_agrees_with_one_of_plain_operations_in_values_and_gradients(random, weights, monkeypatch):
    config = family_member(64, expansion=4, granularity=4, vocab_size=256, max_position_embeddings=64)
    block = Block(config, 0).to(DEVICE)
    for parameter in block.parameters():
        parameter.data = draw(random, *parameter.shape) / 8 + (parameter.ndim == 1)
        parameter.data = parameter.data.bfloat16().float()  # the same weights in both precisions
    x_BTD = draw(random, 2, 24, 64, dtype=torch.bfloat16).float()
    rope = rope_table(rope_frequencies(config), torch.arange(24).repeat(2, 1), torch.float32)
    rope = RopeTable(*(part.to(DEVICE) for part in rope))
    slope_BTD = draw(random, 2, 24, 64)

    def run(kernels_run, dtype):
        monkeypatch.setattr("mobilemoe.model.kernels.usable", lambda _: kernels_run)
        leaf = x_BTD.to(dtype).requires_grad_()
        block.to(dtype)
        block.zero_grad()
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=kernels_run and dtype == torch.float32):
            y_BTD, routing = block(leaf, rope, None, None)
        ((y_BTD * slope_BTD).sum() + routing.logits_NE.square().sum()).backward()
        return y_BTD, routing, [leaf.grad.float(), *(parameter.grad.float() for parameter in block.parameters())]

    (y_BTD, routing, ours), (exact_BTD, exact, wanted) = run(True, weights), run(False, torch.float32)
    assert y_BTD.dtype == weights
    assert routing.logits_NE.dtype == torch.float32
    assert torch.equal(routing.experts_NA, exact.experts_NA)
    for mine, theirs in zip((y_BTD.float(), *ours), (exact_BTD, *wanted), strict=True):
        assert (mine - theirs).norm() < 4e-2 * theirs.norm()
