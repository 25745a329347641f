"""Promises of accounting: the published numbers to the unit, and agreement with counts made another way."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from mobilemoe import accounting
from mobilemoe.checkpoint import tensor_table, write_random
from mobilemoe.config import FULL, SLIDING
from mobilemoe.model import MobileMoE
from mobilemoe.presets import PRESETS, family_member, preset
from mobilemoe.scaling.plan.space import Space, config_of

# spec section 1: total, active, int4_file_bytes, KV bytes per token, GFLOPs per token, the paper's INT4 memory in GB.
PUBLISHED = {
    "S": (1_263_374_256, 272_468_736, 713_863_008, 10_240, 0.545, 0.68),
    "M": (2_818_390_552, 528_299_008, 1_590_916_144, 13_312, 1.057, 1.48),
    "L": (5_325_704_320, 921_683_200, 3_004_279_040, 16_384, 1.843, 2.75),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_numbers_come_out_exactly(name):
    config = preset(name)
    total, active, int4, kv, gigaflops, paper = PUBLISHED[name]
    assert accounting.total_parameters(config) == total
    assert accounting.active_parameters(config) == active
    assert accounting.int4_file_bytes(config) == int4
    assert accounting.kv_bytes_per_token(config) == kv
    assert accounting.kv_bytes(config, 1000) == 1000 * kv
    assert accounting.decode_flops(config) == 2 * active
    assert round(accounting.decode_flops(config) / 1e9, 3) == gigaflops
    assert round(accounting.int4_paper_bytes(config) / 1e9, 2) == paper


def test_total_counts_the_selection_bias_and_active_does_not():
    by_name = {part.name: part for part in accounting.parts(preset("S"))}
    bias = by_name["selection bias"]
    assert (bias.parameters, bias.active_parameters) == (20 * 60, 0)


def test_the_released_s_file_is_the_payload_and_a_header_of_53232_bytes():
    assert accounting.int4_file_bytes(preset("S")) + 53_232 == 713_916_240


def test_nano_has_52_4_million_parameters_in_30_megabytes():
    nano = preset("nano")
    assert accounting.total_parameters(nano) == 52_359_696
    assert accounting.active_parameters(nano) == 19_329_408
    assert accounting.int4_file_bytes(nano) == 29_652_000


def test_the_baselines_have_their_published_sizes():
    assert round(accounting.total_parameters(preset("mobilellm-pro")) / 1e9, 3) == 1.084
    assert accounting.active_parameters(preset("mobilellm-pro")) == accounting.total_parameters(preset("mobilellm-pro"))
    assert round(accounting.total_parameters(preset("olmoe-1b-7b")) / 1e9, 1) == 6.9
    assert round(accounting.active_parameters(preset("olmoe-1b-7b")) / 1e9, 1) == 1.3


# ---- the same counts, made another way

SHAPES = {
    "family": family_member(64, layers=3, vocab_size=96, granularity=4),
    "no shared expert": family_member(64, layers=2, vocab_size=96, shared=False),
    "dense": family_member(96, expansion=1, layers=2, vocab_size=64),
    "untied softmax": dataclasses.replace(
        family_member(64, layers=2, vocab_size=96), tie_word_embeddings=False, router_score="softmax"
    ),
    "head norm weights": dataclasses.replace(family_member(128, layers=2, vocab_size=96), qk_norm="head_weight"),
    "projection norm weights": dataclasses.replace(
        family_member(128, layers=2, vocab_size=96), qk_norm="projection_weight"
    ),
    "one wide head": dataclasses.replace(
        family_member(64, layers=1, vocab_size=32), num_attention_heads=1, num_key_value_heads=1, head_dim=96
    ),
}
ALL = SHAPES | PRESETS


def brute_force(c) -> list[tuple[str, tuple[int, ...]]]:
    """Every tensor of spec 3.2 and 3.5 as (kind, logical shape), layer by layer, expert by expert."""
    d, f, q, kv = c.hidden_size, c.intermediate_size, c.num_attention_heads, c.num_key_value_heads
    out = [("embedding", (c.vocab_size, d)), ("norm", (d,))]
    if not c.tie_word_embeddings:
        out.append(("head", (c.vocab_size, d)))
    for _ in range(c.num_hidden_layers):
        out += [("norm", (d,))] * 2
        out += [("matrix", (q * c.head_dim, d)), ("matrix", (kv * c.head_dim, d)), ("matrix", (kv * c.head_dim, d))]
        out += [("matrix", (d, q * c.head_dim))]
        if c.qk_norm == "head_weight":
            out += [("norm", (c.head_dim,))] * 2
        if c.qk_norm == "projection_weight":
            out += [("norm", (q * c.head_dim,)), ("norm", (kv * c.head_dim,))]
        if c.ffn_type == "dense":
            out += [("matrix", (f, d)), ("matrix", (f, d)), ("matrix", (d, f))]
            continue
        out.append(("router", (c.num_local_experts, d)))
        if c.router_score == "sigmoid":
            out.append(("bias", (c.num_local_experts,)))
        for expert in range(c.num_local_experts):
            kind = "matrix" if expert < c.num_experts_per_tok else "idle"
            out += [(kind, (f, d)), (kind, (f, d)), (kind, (d, f))]
        if c.intermediate_size_mlp:
            s = c.intermediate_size_mlp
            out += [("matrix", (s, d)), ("matrix", (s, d)), ("matrix", (d, s))]
    return out


@pytest.mark.parametrize("name", ALL)
def test_counts_agree_with_a_walk_over_every_single_matrix(name):
    config = ALL[name]
    sizes = [(kind, math.prod(shape)) for kind, shape in brute_force(config)]
    matrices = ("embedding", "head", "matrix", "idle")
    assert accounting.total_parameters(config) == sum(size for _, size in sizes)
    assert accounting.active_parameters(config) == sum(n for kind, n in sizes if kind not in ("idle", "bias"))
    # 32 weights: 16 bytes of nibbles and an fp16 scale; all shapes here are multiples of 32
    int4 = sum(n * 18 // 32 if kind in matrices else n * (4 if kind == "router" else 2) for kind, n in sizes)
    assert accounting.int4_file_bytes(config) == int4
    assert accounting.bf16_file_bytes(config) == sum(n * (4 if kind == "router" else 2) for kind, n in sizes)
    paper = {"embedding": 1, "head": 1, "matrix": 0.5, "idle": 0.5, "router": 4, "norm": 2, "bias": 2}
    assert accounting.int4_paper_bytes(config) == sum(n * paper[kind] for kind, n in sizes)


@pytest.mark.parametrize("axis", [None, "in", "out"])
@pytest.mark.parametrize("name", ALL)
def test_bytes_agree_with_the_table_of_tensors_that_checkpoints_are_written_from(name, axis):
    width = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1}
    table = tensor_table(dataclasses.replace(ALL[name], expert_group_axis=axis))
    payload = sum(math.prod(shape) * width[dtype] for dtype, shape in table.values())
    count = accounting.bf16_file_bytes if axis is None else accounting.int4_file_bytes
    assert payload == count(ALL[name])


@pytest.mark.parametrize("name", ALL)
def test_total_parameters_are_those_of_the_pytorch_model(name):
    with torch.device("meta"):
        state = MobileMoE(ALL[name]).state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == accounting.total_parameters(ALL[name])


@pytest.mark.parametrize("format", ["int4", "bf16"])
def test_a_written_file_is_as_long_as_was_said(format, tmp_path):
    config = SHAPES["family"]
    write_random(tmp_path / "model", config, format=format, seed=0)
    data = (tmp_path / "model" / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    count = accounting.int4_file_bytes if format == "int4" else accounting.bf16_file_bytes
    assert len(data) - header == count(config)


# ---- work and cache

WINDOWED = dataclasses.replace(
    family_member(64, layers=4, vocab_size=96), layer_types=(FULL, SLIDING, SLIDING, FULL), sliding_window=5
)


def attended(config, position: int) -> int:
    """Keys that the token at `position` (from 0) meets, over all layers, counted one by one."""
    met = 0
    for layer in range(config.num_hidden_layers):
        window = config.window(layer)
        met += sum(1 for key in range(position + 1) if window is None or position - key < window)
    return met


@pytest.mark.parametrize("config", [WINDOWED, SHAPES["family"], SHAPES["untied softmax"]])
@pytest.mark.parametrize("tokens", [1, 4, 5, 6, 17])
def test_flops_agree_with_a_count_token_by_token(config, tokens):
    head = config.vocab_size * config.hidden_size
    # in a tied model the one matrix stands for the head; in an untied one the embedding is a mere look-up
    body = accounting.active_parameters(config) - (head if config.tie_word_embeddings else 2 * head)
    per_key = 2 * 2 * config.num_attention_heads * config.head_dim  # q k and p v, a multiply-add each
    decode = 2 * (body + head) + per_key * attended(config, tokens - 1)
    assert accounting.decode_flops(config, tokens) == decode
    prefill = sum(2 * body + per_key * attended(config, position) for position in range(tokens)) + 2 * head
    assert accounting.prefill_flops(config, tokens) == prefill


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("context", [0, 1, 4, 5, 6, 100])
def test_the_cache_keeps_no_more_than_a_window(context, bits):
    kept = sum(min(context, 5 if kind == SLIDING else context) for kind in WINDOWED.layer_types)
    expected = kept * 2 * WINDOWED.num_key_value_heads * WINDOWED.head_dim * bits // 8
    assert accounting.kv_bytes(WINDOWED, context, bits) == expected


def test_training_takes_6_flops_per_active_parameter_and_causal_attention():
    config = preset("S")
    attention = 3 * 4 * 20 * 12 * 64 * 2048 / 2
    assert accounting.training_flops_per_token(config, 2048) == 6 * 272_468_736 + attention


def test_the_summary_is_json_and_repeats_the_functions():
    summary = accounting.summary(preset("S"), 4096)
    assert json.loads(json.dumps(summary)) == summary
    assert summary["active_parameters"] == 272_468_736
    assert summary["kv_bytes"] == 4096 * 10_240
    assert summary["prefill_flops"] == accounting.prefill_flops(preset("S"), 4096)
    assert not any(isinstance(value, np.generic) for value in summary.values())


# ---- many models at once

COUNTS = {
    "total": accounting.total_parameters,
    "active": accounting.active_parameters,
    "int4": accounting.int4_file_bytes,
    "paper": accounting.int4_paper_bytes,
    "bf16": accounting.bf16_file_bytes,
    "int8": lambda shape: accounting.file_bytes(shape, 8),
    "kv per token": accounting.kv_bytes_per_token,
    "kv": lambda shape: accounting.kv_bytes(shape, 777, 16),
    "decode bytes": lambda shape: accounting.decode_bytes(shape, 100),
    "decode bytes, 16 bits": lambda shape: accounting.decode_bytes(shape, 100, 16, 16),
    "decode": lambda shape: accounting.decode_flops(shape, 333),
    "prefill": lambda shape: accounting.prefill_flops(shape, 1001),
    "training": lambda shape: accounting.training_flops_per_token(shape, 2048),
}


@pytest.mark.parametrize("count", COUNTS.values(), ids=COUNTS)
def test_arrays_of_shapes_are_counted_as_each_of_them_alone(count):
    space = Space(
        experts=(1, 3, 8),
        granularities=(1, 8),
        widths=(256, 1280),
        ratios=(20, 40),
        tied=(True, False),
        vocabularies=(96,),
    )
    for shapes in space.shapes():
        together = count(shapes)
        assert len(together) == len(shapes)
        for index in range(len(shapes)):
            assert together[index] == count(config_of(shapes, index, 0))


def test_eight_bits_are_a_byte_a_weight_and_a_scale_for_each_group():
    config = SHAPES["dense"]  # 96 wide, all matrices in whole groups of 32
    norms = (2 * config.num_hidden_layers + 1) * 96
    weights = accounting.total_parameters(config) - norms
    assert accounting.file_bytes(config, 8) == weights * 34 // 32 + 2 * norms
    assert accounting.file_bytes(config, 4) == accounting.int4_file_bytes(config) == weights * 18 // 32 + 2 * norms
    assert accounting.file_bytes(config, 16) == accounting.bf16_file_bytes(config)
