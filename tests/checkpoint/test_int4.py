"""INT4 nibbles and scales are those of spec 3.1 and section 5, to the bit."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from mobilemoe.checkpoint import int4
from mobilemoe.errors import CheckpointError


def slow_quantize(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The definition, one weight at a time, with exact fractions for the rounding."""
    packed = np.zeros((*w.shape[:-1], w.shape[-1] // 2), np.uint8)
    scale = np.zeros((*w.shape[:-1], w.shape[-1] // 32), np.float16)
    for row in itertools.product(*map(range, w.shape[:-1])):
        for group in range(w.shape[-1] // 32):
            values = w[row][32 * group : 32 * group + 32]
            s = np.float16(np.float32(max(abs(v) for v in values)) / np.float32(7.5))
            scale[(*row, group)] = s
            for i, v in enumerate(values):
                # The quotient is rounded to fp32 before it is rounded to a whole number, as everywhere in fp32.
                quotient = Fraction(float(v / np.float32(s))) if s else Fraction(0)
                q = max(-8, min(7, round(quotient)))  # Python rounds halves to even
                packed[(*row, 16 * group + i // 2)] |= (q & 0xF) << (4 * (i % 2))
    return packed, scale


def slow_dequantize(packed: np.ndarray, scale: np.ndarray) -> np.ndarray:
    w = np.zeros((*packed.shape[:-1], 2 * packed.shape[-1]), np.float32)
    for row in itertools.product(*map(range, packed.shape[:-1])):
        for i in range(w.shape[-1]):
            q = int(packed[(*row, i // 2)]) >> (4 * (i % 2)) & 0xF
            w[(*row, i)] = (q - 16 if q >= 8 else q) * float(scale[(*row, i // 32)])
    return w


@pytest.mark.parametrize("shape", [(32,), (1, 32), (3, 64), (5, 96), (2, 3, 32), (2, 4, 128), (0, 32), (17, 320)])
def test_quantising_agrees_with_the_definition(shape):
    rng = np.random.default_rng(len(shape))
    w = rng.standard_normal(shape).astype(np.float32)
    w *= rng.choice([1e-9, 1e-7, 1e-5, 0.02, 1, 1e4], (*shape[:-1], 1)).astype(np.float32)
    packed, scale = int4.quantize(w)
    want_packed, want_scale = slow_quantize(w)
    np.testing.assert_array_equal(packed, want_packed)
    np.testing.assert_array_equal(scale, want_scale)
    np.testing.assert_array_equal(int4.scales(w), want_scale)
    np.testing.assert_array_equal(int4.dequantize(packed, scale), slow_dequantize(packed, scale))


def test_blocks_do_not_show(monkeypatch):
    w = np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32)
    whole = int4.quantize(w)
    monkeypatch.setattr(int4, "_BLOCK", 3 * 64)
    for a, b in zip(whole, int4.quantize(w), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(int4.dequantize(*whole), slow_dequantize(*whole))


def test_golden_bytes():
    # amax 7.5 gives scale 1: 7.5 rounds to 8 and is clamped to 7; halves go to the even neighbour.
    w = np.zeros(32, np.float32)
    w[:10] = [7.5, -7.5, 0.5, 1.5, -0.5, -1.5, 2.5, -2.5, 3, -1]
    packed, scale = int4.quantize(w)
    assert scale.tobytes() == bytes.fromhex("003c")
    assert packed.tobytes() == bytes.fromhex("8720e0e2f3" + "00" * 11)
    packed, scale = int4.quantize((np.arange(32, dtype=np.float32) - 16) / 100)
    assert scale.tobytes() == bytes.fromhex("7625")
    assert packed.tobytes() == bytes.fromhex("98a9bacbdcedfe0f0011223344556677")


def test_every_byte_survives_unpacking_and_packing():
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(int4.pack(int4.unpack(every)), every)
    assert int4.unpack(np.array([0x8F], np.uint8)).tolist() == [-1, -8]


def test_dequantising_is_exact_for_every_scale():
    scale = np.arange(2**16, dtype=np.uint16).view(np.float16)
    scale = scale[np.isfinite(scale)]
    packed = np.tile(np.arange(16, dtype=np.uint8) | 0x90, (len(scale), 1))
    got = int4.dequantize(packed, scale[:, None])
    want = int4.unpack(packed).astype(np.float64) * scale[:, None].astype(np.float64)
    np.testing.assert_array_equal(got.astype(np.float64), want)


def test_infinite_scales_are_loaded_as_they_stand():
    packed = np.full((2, 16), 0x10, np.uint8)  # 0 and 1 in turn
    w = int4.dequantize(packed, np.array([[np.inf], [np.nan]], np.float16))
    assert math.isnan(w[0, 0])
    assert w[0, 1] == np.inf
    assert np.isnan(w[1]).all()


def test_zeros_stay_zeros():
    packed, scale = int4.quantize(np.zeros((2, 64), np.float32))
    assert not packed.any()
    assert not scale.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 5e5, 3.4e38])
def test_what_no_scale_can_hold_is_refused_by_name(value):
    w = np.zeros((2, 64), np.float32)
    w[1, 40] = value
    with pytest.raises(CheckpointError, match="the norm holds weights that are not finite or exceed"):
        int4.quantize(w, "the norm")


def test_columns_must_fill_their_groups():
    with pytest.raises(CheckpointError, match="multiple of 32"):
        int4.quantize(np.zeros((2, 48), np.float32))


@pytest.mark.parametrize("axis", ["in", "out"])
def test_both_expert_axes_come_back_in_logical_shape(axis):
    w = np.random.default_rng(1).standard_normal((3, 64, 96)).astype(np.float32)
    packed, scale = int4.quantize(int4.arrange_experts(w, axis))
    assert packed.shape == ((3, 64, 48) if axis == "out" else (3, 96, 32))
    back = int4.dequantize_experts(packed, scale, axis)
    assert back.shape == w.shape
    groups = w.reshape(3, 64, 3, 32) if axis == "out" else w.reshape(3, 2, 32, 96)
    group_axis = 3 if axis == "out" else 2
    step = np.abs(groups).max(axis=group_axis, keepdims=True) / 7.5
    assert (np.abs(groups - back.reshape(groups.shape)) <= 0.51 * step).all()


def test_bf16_rounds_to_nearest_even_and_keeps_every_value():
    every = np.arange(2**16, dtype=np.uint16)
    values = int4.from_bf16(every)
    real = ~np.isnan(values)
    np.testing.assert_array_equal(int4.to_bf16(values)[real], every[real])
    assert np.isnan(int4.from_bf16(int4.to_bf16(values[~real]))).all()
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0xFF800000, 0x7F800001], np.uint32)
    assert int4.to_bf16(bits.view(np.float32)).tolist() == [0x3F80, 0x3F82, 0x3F81, 0x7F80, 0xFF80, 0x7FC0]
