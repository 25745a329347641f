"""INT4 weights reach ExecuTorch with the same integers; its packed layout is read here once more, value by value."""

import numpy as np
import pytest

from checkpoint_models import rewrite
from mobilemoe.checkpoint import Checkpoint, write_random
from mobilemoe.errors import CheckpointError
from mobilemoe.export.executorch_weights import Grouped, Weights, grouped, pack_embedding, pack_experts
from mobilemoe.export.stock import half_rotated
from model_configs import GROUPED_QUERIES

GATE_UP = "model.layers.0.feed_forward.experts.gate_up_proj"
QUERIES = "model.layers.0.self_attn.q_proj.weight"


def drawn(*shape, seed=1):
    rng = np.random.default_rng(seed)
    q = rng.integers(-8, 8, shape).astype(np.int8)
    return Grouped(q, rng.uniform(0.01, 1, (*shape[:-1], shape[-1] // 32)).astype(np.float32))


def read_expert(data, outputs, inputs):
    """Integers, scales and sums of one packed expert, by the operator's layout."""
    assert data[:64].view("<i4").tolist() == [6712, 1, 4, 0, 0, 8, 16, 2] + 8 * [0]
    q = np.empty((outputs, inputs), int)
    scales, sums = np.empty((outputs, inputs // 32)), np.empty((outputs, inputs // 32), int)
    at = 64
    for block in range(0, outputs, 8):
        for group in range(inputs // 32):
            for tile in range(2):
                values = []
                for run in data[at : at + 64].reshape(4, 16).tolist():
                    values += [byte & 15 for byte in run] + [byte >> 4 for byte in run]
                at += 64
                for place, value in enumerate(values):
                    half, row, column = place // 64, place // 8 % 8, place % 8
                    q[block + row, group * 32 + tile * 16 + half * 8 + column] = value - 8
            scales[block : block + 8, group] = data[at : at + 32].view("<f4")
            sums[block : block + 8, group] = data[at + 32 : at + 64].view("<i4")
            at += 64
    assert at == len(data)
    return q, scales, sums


@pytest.mark.parametrize(("outputs", "inputs"), [(8, 32), (64, 32), (24, 96), (128, 64)])
def test_packed_experts_are_what_the_operators_layout_says(outputs, inputs):
    matrices = drawn(3, outputs, inputs)
    packed = pack_experts(matrices)
    assert packed.shape == (3, 64 + outputs * inputs * 6 // 8)
    for data, wanted_q, wanted_scales in zip(packed, *matrices, strict=True):
        q, scales, sums = read_expert(data, outputs, inputs)
        np.testing.assert_array_equal(q, wanted_q)
        np.testing.assert_array_equal(scales, wanted_scales)
        np.testing.assert_array_equal(sums, wanted_q.reshape(outputs, -1, 32).sum(-1))


def test_a_packed_embedding_has_the_even_value_in_the_high_nibble():
    matrix = drawn(5, 64)
    packed = pack_embedding(matrix).astype(int)
    np.testing.assert_array_equal((packed >> 4) - 8, matrix.q[:, 0::2])
    np.testing.assert_array_equal((packed & 15) - 8, matrix.q[:, 1::2])


@pytest.mark.parametrize("axis", ["in", "out"])
def test_experts_grouped_along_inputs_stay_exact_and_others_are_rounded(axis, tmp_path):
    write_random(tmp_path / "m", GROUPED_QUERIES, seed=1, format="int4", group_axis=axis)
    with Checkpoint.open(tmp_path / "m") as source:
        weights = Weights(source)
        packed = weights.experts(GATE_UP)
        w_EIO = source.weight(GATE_UP)
    for data, w_IO in zip(packed, w_EIO, strict=True):
        q, scales, _ = read_expert(data, 64, 64)
        written_IO = (q * np.repeat(scales, 32, axis=1)).T
        if axis == "in":
            np.testing.assert_array_equal(written_IO, w_IO)
        else:
            assert np.abs(written_IO - w_IO).max() < np.abs(w_IO).max() / 7
    error = weights.found.report().kinds["routed"].relative_rms
    assert error == 0 if axis == "in" else 0.01 < error < 0.15


def test_linears_keep_their_integers_under_bfloat16_scales_in_the_order_of_half_rotated_rows(tmp_path):
    write_random(tmp_path / "m", GROUPED_QUERIES, seed=1, format="int4")
    with Checkpoint.open(tmp_path / "m") as source:
        weights, exact = Weights(source), grouped(source, QUERIES)
        linear = weights.linear(QUERIES)
    rows = half_rotated(GROUPED_QUERIES, GROUPED_QUERIES.num_attention_heads)
    np.testing.assert_array_equal(linear.q, exact.q[rows])
    assert not (linear.scales.view(np.uint32) & 0xFFFF).any()
    assert np.abs(linear.scales / exact.scales[rows] - 1).max() < 2**-8
    assert 0 < weights.found.report().kinds["attention"].relative_rms < 2**-8


def test_a_tied_head_is_the_embedding(tmp_path):
    write_random(tmp_path / "m", GROUPED_QUERIES, seed=1, format="int4")
    with Checkpoint.open(tmp_path / "m") as source:
        weights = Weights(source)
        np.testing.assert_array_equal(weights.linear("lm_head.weight").q, weights.embedding().q)
    assert weights.found.report().kinds["embedding"].relative_rms == 0
    assert weights.found.report().kinds["head"].relative_rms > 0


def with_scale(folder, value):
    """An INT4 model whose first group of queries has this scale."""
    write_random(folder, GROUPED_QUERIES, seed=1, format="int4")

    def change(tensors):
        tensors[QUERIES.replace("weight", "weight_scale")][1][0, 0] = value

    rewrite(folder, change)
    return Checkpoint.open(folder)


def test_a_group_under_a_scale_of_zero_becomes_zeros_under_a_scale_that_xnnpack_takes(tmp_path):
    with with_scale(tmp_path / "m", 0) as source:
        matrix, exact = grouped(source, QUERIES), source.weight(QUERIES)
    np.testing.assert_array_equal(matrix.values(), exact)
    assert (matrix.scales > 0).all()


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.feed_forward.router.weight"])
def test_a_norm_or_a_router_that_is_not_finite_is_refused_by_name(name, tmp_path):
    write_random(tmp_path / "m", GROUPED_QUERIES, seed=1, format="bf16")

    def change(tensors):
        dtype, array = tensors[name]
        array.flat[0] = np.nan if dtype == "F32" else 0x7F80  # infinity in bfloat16

    rewrite(tmp_path / "m", change)
    with Checkpoint.open(tmp_path / "m") as source, pytest.raises(CheckpointError, match=name):
        Weights(source).floats(name)


@pytest.mark.parametrize("value", [-0.5, np.inf, np.nan])
def test_a_scale_that_would_end_the_process_there_is_refused_by_the_weights_name(value, tmp_path):
    with with_scale(tmp_path / "m", value) as source, pytest.raises(CheckpointError, match=QUERIES):
        grouped(source, QUERIES)
