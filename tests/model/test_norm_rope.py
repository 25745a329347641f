"""The norm and RoPE keep their promises: every dtype, every distance, every branch of the scaling."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mobilemoe.config import ModelConfig, RopeScaling
from mobilemoe.model.norm import RMSNorm, rms_norm
from mobilemoe.model.rope import apply_rope, rope_frequencies, rope_table
from mobilemoe.presets import PRESETS
from model_configs import BLENDED_SCALING, FAMILY, GROUPED_QUERIES, SHORT_SCALING
from random_models import assert_close, generator

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
    """18 of the 32 frequencies of the released models stay, 14 are divided by 16, none is nan (spec section 2)."""
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
