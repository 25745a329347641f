"""The parts of the PyTorch model keep their promises: norm, RoPE, masks, packing, KV cache, padding, names, seeds."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mobilemoe.checkpoint import weights, write_random
from mobilemoe.config import FULL, SLIDING, ModelConfig, RopeScaling
from mobilemoe.errors import UsageError
from mobilemoe.model import KVCache, MobileMoE
from mobilemoe.model.attention import visible
from mobilemoe.model.norm import RMSNorm, rms_norm
from mobilemoe.model.rope import apply_rope, rope_frequencies, rope_table
from mobilemoe.model.router import Router
from mobilemoe.presets import PRESETS
from reference import reference_logits
from test_model_reference import BLENDED_SCALING, CONFIGS, FAMILY, GROUPED_QUERIES, SHORT_SCALING, loaded

SLIDING_MOE = dataclasses.replace(FAMILY, sliding_window=4, layer_types=(FULL, SLIDING, SLIDING))
MODELS = {"family": FAMILY, "sliding": SLIDING_MOE, **{name: CONFIGS[name] for name in ("pro-like", "olmoe-like")}}
EACH_MODEL = pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_model(config: ModelConfig, seed: int = 0) -> MobileMoE:
    """float64, with weights large enough that attention and routing are far from uniform."""
    model, source = MobileMoE(config).double().eval(), generator(seed)
    for name, tensor in model.state_dict().items():
        mean, std = (1.0, 0.1) if name.endswith("norm.weight") else (0.0, 0.15)
        tensor.normal_(mean, std, generator=source)
    return model


def random_tokens(*shape: int, seed: int = 0, vocabulary: int = FAMILY.vocab_size) -> Tensor:
    return torch.randint(0, vocabulary, shape, generator=generator(seed))


def assert_close(got: Tensor, want: Tensor, tolerance: float = 1e-12) -> None:
    """Largest difference against the largest value, and the same dtype."""
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    assert (got - want).abs().max() <= tolerance * want.abs().max()


# Norm


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-15), (torch.float32, 1e-6), (torch.bfloat16, 4e-3)]
)
def test_rms_norm_divides_by_the_root_mean_square(dtype, tolerance, weighted):
    x = (3 * torch.randn(2, 5, 48, generator=generator(0), dtype=torch.float64)).to(dtype)
    weight = torch.randn(48, generator=generator(1)) if weighted else None
    got = rms_norm(x, weight, 1e-5)
    assert got.dtype == dtype
    for row, out in zip(x.double().reshape(-1, 48), got.double().reshape(-1, 48), strict=True):
        want = row / math.sqrt(sum(v * v for v in row.tolist()) / 48 + 1e-5)
        want = want if weight is None else want * weight.double()
        assert_close(out, want, 4 * tolerance)


def test_rms_norm_keeps_its_eps_inside_the_root():
    x = torch.full((1, 8), 1e-3, dtype=torch.float64)
    assert_close(rms_norm(x, None, 1e-5), x / math.sqrt(1e-6 + 1e-5), 1e-14)
    assert not rms_norm(torch.zeros(1, 8), None, 1e-5).any()


def test_rms_norm_of_bf16_sums_squares_in_fp32():
    x = torch.cat([torch.full((1,), 256.0), torch.full((4095,), 1.0)]).bfloat16()
    want = x.double() / math.sqrt((256**2 + 4095) / 4096 + 1e-5)
    assert_close(rms_norm(x, None, 1e-5).double(), want, 4e-3)


def test_norm_takes_the_dtype_of_autocast():
    norm = RMSNorm(16, 1e-5)
    assert norm(torch.ones(2, 16)).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(torch.ones(2, 16)).dtype == torch.bfloat16


# RoPE


def rotated(x_BTHh: Tensor, config: ModelConfig, positions_BT: Tensor) -> Tensor:
    return apply_rope(x_BTHh, rope_table(rope_frequencies(config), positions_BT, x_BTHh.dtype))


def test_rope_turns_adjacent_pairs():
    config = dataclasses.replace(GROUPED_QUERIES, rope_theta=100.0)
    x_BTHh = torch.randn(2, 3, 4, 16, generator=generator(0), dtype=torch.float64)
    positions_BT = torch.tensor([[0, 1, 2], [7, 70, 700]])
    got = rotated(x_BTHh, config, positions_BT)
    for b, t, head, pair in np.ndindex(2, 3, 4, 8):
        angle = int(positions_BT[b, t]) * 100.0 ** (-2 * pair / 16)
        want = complex(*x_BTHh[b, t, head, 2 * pair : 2 * pair + 2].tolist()) * complex(
            math.cos(angle), math.sin(angle)
        )
        assert abs(complex(*got[b, t, head, 2 * pair : 2 * pair + 2].tolist()) - want) < 1e-12


def test_rope_keeps_the_length_and_leaves_position_zero():
    x_BTHh = torch.randn(1, 50, 2, 32, generator=generator(0), dtype=torch.float64)
    positions_BT = torch.arange(50).unsqueeze(0) * 997
    got = rotated(x_BTHh, FAMILY, positions_BT)
    assert_close(got.norm(dim=-1), x_BTHh.norm(dim=-1), 1e-14)
    assert torch.equal(got[:, 0], x_BTHh[:, 0])


@pytest.mark.parametrize("scaling", [None, RopeScaling(), BLENDED_SCALING])
def test_rope_scores_depend_on_the_distance_alone(scaling):
    config = dataclasses.replace(FAMILY, rope_scaling=scaling)
    q, k = torch.randn(2, 32, generator=generator(0), dtype=torch.float64)
    offsets = torch.tensor([0, 1, 13, 500, 8000])
    for distance in (0, 1, 9, 300):
        q_T = rotated(q.expand(1, 5, 1, 32), config, (offsets + distance).unsqueeze(0))
        k_T = rotated(k.expand(1, 5, 1, 32), config, offsets.unsqueeze(0))
        score_T = (q_T * k_T).sum(-1).flatten()
        assert (score_T - score_T[0]).abs().max() < 1e-10


def test_rope_in_fp32_is_exact_far_from_the_start():
    """Angles are made in float64: at position 100,000 an fp32 angle would be off by up to 4e-3."""
    x_BTHh = torch.randn(1, 1, 2, 32, generator=generator(0))
    far = torch.tensor([[100_003]])
    got = rotated(x_BTHh, FAMILY, far)
    assert got.dtype == torch.float32
    assert_close(got.double(), rotated(x_BTHh.double(), FAMILY, far), 1e-6)


def test_rope_rotates_bf16_in_fp32():
    x_BTHh = torch.randn(1, 4, 2, 32, generator=generator(0)).bfloat16()
    table = rope_table(rope_frequencies(FAMILY), torch.arange(4).unsqueeze(0), torch.float32)
    got = apply_rope(x_BTHh, table)
    assert got.dtype == torch.float32
    assert torch.equal(got, apply_rope(x_BTHh.float(), table))


def test_the_released_scaling_divides_every_wavelength_beyond_the_context():
    """18 of the 32 frequencies of the released models stay, 14 are divided by 16, none is nan (SPEC section 2)."""
    config = PRESETS["S"]
    plain_R = rope_frequencies(dataclasses.replace(config, rope_scaling=None))
    freq_R = rope_frequencies(config)
    assert freq_R.dtype == torch.float64
    assert_close(plain_R, 500_000.0 ** -(torch.arange(0, 64, 2).double() / 64), 1e-15)
    long_R = 2 * math.pi / plain_R > 8192
    assert int(long_R.sum()) == 14
    assert torch.equal(freq_R, torch.where(long_R, plain_R / 16, plain_R))


@pytest.mark.parametrize("high", [1.0, 1.5, 4.0])
def test_llama3_scaling_follows_its_three_branches(high):
    scaling = RopeScaling(factor=8.0, original_max_position_embeddings=300, high_freq_factor=high)
    config = dataclasses.replace(GROUPED_QUERIES, head_dim=64, rope_theta=10_000.0, rope_scaling=scaling)
    kinds = set()
    for pair, got in enumerate(rope_frequencies(config).tolist()):
        plain = 10_000.0 ** (-2 * pair / 64)
        turns = 300 * plain / (2 * math.pi)  # of this pair over the original context
        kind = "divided" if turns < 1 else "kept" if turns > high or high == 1 else "blended"
        kinds.add(kind)
        keep = {"divided": 0, "kept": 1}.get(kind, (turns - 1) / (high - 1) if high > 1 else None)
        assert got == pytest.approx(plain * (keep + (1 - keep) / 8), rel=1e-13)
    assert kinds == ({"divided", "kept"} if high == 1 else {"divided", "blended", "kept"})


def test_a_blend_over_almost_nothing_is_the_branch():
    """low = high is the limit of low < high, so the branch for it is no special case."""
    config = dataclasses.replace(GROUPED_QUERIES, rope_scaling=SHORT_SCALING)
    nearly = dataclasses.replace(SHORT_SCALING, high_freq_factor=1.0 + 1e-12)
    assert_close(
        rope_frequencies(config), rope_frequencies(dataclasses.replace(config, rope_scaling=nearly)), tolerance=1e-14
    )


# Masks


@pytest.mark.parametrize("window", [None, 1, 2, 5, 100])
@pytest.mark.parametrize("queries", [1, 4, 12])
def test_visible_is_causal_within_segment_and_window(queries, window):
    segments_BS = torch.tensor([[0] * 12, [9, 9, 9, 1, 1, 1, 1, 2, 2, 3, 3, 3], [5] * 11 + [6]])
    mask = visible(segments_BS[:, 12 - queries :], segments_BS, window)
    assert mask.shape == (3, 1, queries, 12)
    assert mask.dtype == torch.bool
    for b, t, s in np.ndindex(3, queries, 12):
        at = 12 - queries + t
        want = s <= at and segments_BS[b, s] == segments_BS[b, at] and (window is None or at - s < window)
        assert bool(mask[b, 0, t, s]) == bool(want)
    assert mask.any(dim=-1).all()  # no query is left without a key


# Packing


@EACH_MODEL
@torch.no_grad()
def test_packed_documents_equal_documents_alone(config):
    model, lengths = random_model(config), (5, 1, 11, 7)
    tokens_BT = random_tokens(1, sum(lengths))
    segments_BT = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths)).unsqueeze(0)
    positions_BT = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    packed = model(tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT)
    alone = torch.cat([model(part) for part in tokens_BT.split(lengths, dim=1)], dim=1)
    assert_close(packed, alone)
    # RoPE sees distances only, so that counting positions on through the row changes nothing but rounding.
    assert_close(model(tokens_BT, segments_BT=segments_BT), alone, 1e-11)


@torch.no_grad()
def test_nothing_leaks_between_packed_documents_or_from_the_future():
    model, tokens_BT = random_model(SLIDING_MOE), random_tokens(1, 20)
    segments_BT = torch.tensor([[0] * 8 + [1] * 12])
    base = model(tokens_BT, segments_BT=segments_BT)
    for at in (0, 7, 8, 13, 19):
        changed_BT = tokens_BT.clone()
        changed_BT[0, at] = (changed_BT[0, at] + 1) % FAMILY.vocab_size
        # Beyond rounding: the number of tokens at an expert may change the last bit of the others.
        moved_T = ((model(changed_BT, segments_BT=segments_BT) - base).abs() > 1e-12).any(dim=-1)[0]
        last = 8 if at < 8 else 20
        assert moved_T[at]
        assert not moved_T[:at].any()
        assert not moved_T[last:].any()


@EACH_MODEL
def test_no_gradient_crosses_a_packed_document(config):
    model, tokens_BT = random_model(config), torch.arange(16).unsqueeze(0)
    segments_BT = torch.tensor([[0] * 6 + [1] * 10])
    x_BTD, _ = model.hidden(tokens_BT, segments_BT=segments_BT)
    x_BTD[:, 6:].square().sum().backward()
    moved_T = model.model.embed_tokens.weight.grad[:16].any(dim=-1)
    assert moved_T.tolist() == [False] * 6 + [True] * 10


@torch.no_grad()
def test_rows_of_a_batch_do_not_see_each_other():
    model, tokens_BT = random_model(FAMILY), random_tokens(3, 9)
    assert_close(model(tokens_BT), torch.cat([model(row.unsqueeze(0)) for row in tokens_BT]))


# KV cache


@pytest.mark.parametrize("chunks", [(13,), (1,) * 13, (5, 8), (4, 1, 1, 7), (12, 1)], ids=str)
@EACH_MODEL
@torch.no_grad()
def test_chunks_through_the_cache_equal_the_full_forward(config, chunks):
    model, tokens_BT = random_model(config), random_tokens(2, 13)
    cache = KVCache(config, batch=2, slots=16, dtype=torch.float64)
    parts = [model(part, cache=cache) for part in tokens_BT.split(chunks, dim=1)]
    assert cache.length == 13
    assert_close(torch.cat(parts, dim=1), model(tokens_BT))


@torch.no_grad()
def test_documents_through_the_cache_stay_apart():
    model, tokens_BT = random_model(SLIDING_MOE), random_tokens(1, 14)
    segments_BT = torch.tensor([[0] * 5 + [1] * 9])
    cache = KVCache(SLIDING_MOE, batch=1, slots=14, dtype=torch.float64)
    parts = [
        model(tokens, segments_BT=segments, cache=cache)
        for tokens, segments in zip(tokens_BT.split(4, dim=1), segments_BT.split(4, dim=1), strict=True)
    ]
    assert_close(torch.cat(parts, dim=1), model(tokens_BT, segments_BT=segments_BT))


@pytest.mark.parametrize("chunk", [1, 3])
@torch.no_grad()
def test_a_full_cache_refuses_more(chunk):
    model, cache = random_model(FAMILY), KVCache(FAMILY, batch=1, slots=6, dtype=torch.float64)
    model(random_tokens(1, 6), cache=cache)
    with pytest.raises(UsageError, match="has 6 slots"):
        model(random_tokens(1, chunk), cache=cache)


# Left padding


PADDING, ROW = -1, 0


def left_padded(rows: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """tokens, positions counted from the first real token, and segments with padding apart, each [B, T]."""
    width = max(map(len, rows))
    tokens_BT, positions_BT = torch.full((2, len(rows), width), 0).unbind()
    segments_BT = torch.full((len(rows), width), PADDING)
    for b, row in enumerate(rows):
        pad = width - len(row)
        tokens_BT[b, pad:], positions_BT[b, pad:] = row, torch.arange(len(row))
        segments_BT[b, pad:] = ROW
    return tokens_BT, positions_BT, segments_BT


@EACH_MODEL
@torch.no_grad()
def test_left_padded_rows_equal_rows_alone(config):
    model, rows = random_model(config), [random_tokens(length, seed=length) for length in (3, 11, 1, 8)]
    tokens_BT, positions_BT, segments_BT = left_padded(rows)
    logits_BTV = model(tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT)
    assert logits_BTV.isfinite().all()
    for row, logits_TV in zip(rows, logits_BTV, strict=True):
        assert_close(logits_TV[-len(row) :], model(row.unsqueeze(0))[0])


@EACH_MODEL
@torch.no_grad()
def test_left_padded_rows_decode_as_rows_alone(config):
    model, rows = random_model(config), [random_tokens(length, seed=length) for length in (2, 9, 5)]
    more_BT = random_tokens(3, 4, seed=99)
    tokens_BT, positions_BT, segments_BT = left_padded(rows)
    cache = KVCache(config, batch=3, slots=16, dtype=torch.float64)
    model(tokens_BT, positions_BT=positions_BT, segments_BT=segments_BT, cache=cache)
    lengths_B1 = torch.tensor([[len(row)] for row in rows])
    real_B1 = torch.full((3, 1), ROW)
    steps = [
        model(more_BT[:, at, None], positions_BT=lengths_B1 + at, segments_BT=real_B1, cache=cache) for at in range(4)
    ]
    for b, row in enumerate(rows):
        alone = model(torch.cat([row, more_BT[b]]).unsqueeze(0))[0, len(row) :]
        assert_close(torch.cat([step[b] for step in steps]), alone)


# Numerics


@pytest.mark.parametrize("through_cache", [False, True])
@pytest.mark.parametrize("name", ["family", "blended-scaling", "pro-like", "olmoe-like", "head-weight"])
@torch.no_grad()
def test_float64_stays_float64_everywhere(name, through_cache, tmp_path):
    """A single step in fp32 would leave an error near 1e-7."""
    config, ids = CONFIGS[name], random_tokens(15, seed=4).tolist()
    write_random(tmp_path / "model", config, seed=11, format="bf16")
    model = loaded(tmp_path / "model").double()
    cache = KVCache(config, batch=1, slots=15, dtype=torch.float64) if through_cache else None
    segments_BT = None if through_cache else torch.zeros(1, 15, dtype=torch.long)
    logits_BTV = model(torch.tensor([ids]), segments_BT=segments_BT, cache=cache)
    assert_close(logits_BTV[0], torch.from_numpy(reference_logits(tmp_path / "model", ids)), 1e-10)
    hidden_BTD, routings = model.hidden(torch.tensor([ids]))
    assert hidden_BTD.dtype == torch.float64
    for routing in routings:
        assert routing.logits_NE.dtype == routing.weights_NA.dtype == torch.float64


@torch.no_grad()
def test_bf16_routes_in_fp32_and_stays_near_float64():
    model = random_model(FAMILY)
    half = MobileMoE(FAMILY).bfloat16().eval()
    half.load_state_dict(model.state_dict())
    model.load_state_dict(half.state_dict())
    tokens_BT = random_tokens(1, 24)
    x_BTD, routings = half.hidden(tokens_BT)
    assert x_BTD.dtype == torch.bfloat16
    assert all(routing.logits_NE.dtype == torch.float32 for routing in routings)
    cosine_BT = torch.cosine_similarity(x_BTD.double(), model.hidden(tokens_BT)[0], dim=-1)
    assert cosine_BT.median() > 0.999  # a token whose choice flips may differ more


@EACH_MODEL
def test_autocast_keeps_router_and_residual_in_fp32(config):
    model, tokens_BT = random_model(config).float(), random_tokens(1, 24)
    seen = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _layer, _inputs, outputs: seen.append(outputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        x_BTD, routings = model.hidden(tokens_BT)
    assert seen == [torch.float32] * config.num_hidden_layers
    assert all(routing.logits_NE.dtype == routing.weights_NA.dtype == torch.float32 for routing in routings)
    exact_BTD, _ = model.hidden(tokens_BT)
    cosine_BT = torch.cosine_similarity(x_BTD.float(), exact_BTD, dim=-1)
    assert cosine_BT.median() > 0.999  # a token whose choice flips may differ more
    x_BTD.float().square().sum().backward()
    for name, parameter in model.named_parameters():
        if name != "lm_head.weight":
            assert parameter.grad.dtype == torch.float32
            assert parameter.grad.isfinite().all(), name


# Names, seeds, selection bias


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
