"""Promises of presets: they are the published models, and `family_member` follows the papers' rules."""

import dataclasses

import pytest

from config_cases import refusal
from mobilemoe.accounting import active_parameters
from mobilemoe.config import RopeScaling
from mobilemoe.errors import UsageError
from mobilemoe.presets import PRESETS, derive, family_knobs, family_member, preset


def test_the_published_dials_give_60_experts_of_which_4_and_a_shared_one_of_four_widths():
    for name, layers, hidden, heads, width in [
        ("S", 20, 768, 12, 384),
        ("M", 26, 1024, 16, 512),
        ("L", 32, 1280, 20, 640),
    ]:
        c = preset(name)
        assert (c.num_hidden_layers, c.hidden_size, c.num_attention_heads) == (layers, hidden, heads)
        assert (c.num_key_value_heads, c.head_dim, c.vocab_size) == (4, 64, 128_256)
        assert (c.num_local_experts, c.num_experts_per_tok) == (60, 4)
        assert (c.intermediate_size, c.intermediate_size_mlp) == (width, 4 * width)
        assert (c.routed_scaling_factor, c.rms_norm_eps, c.rope_theta) == (2.5, 1e-5, 500_000)
        assert c.rope_scaling == RopeScaling(
            factor=16, original_max_position_embeddings=8192, low_freq_factor=1, high_freq_factor=1
        )
        assert c.tie_word_embeddings
        assert c.max_position_embeddings == 8192
        assert c.qk_norm == "head"
        assert c.scale == 0.125


@pytest.mark.parametrize("name", ["S", "M", "L"])
@pytest.mark.parametrize("error", [0.98, 1, 1.02])
def test_derive_finds_the_family_from_active_parameters_and_the_papers_dials(name, error):
    derived = derive(error * active_parameters(PRESETS[name]), rope_scaling=RopeScaling())
    ids = ("bos_token_id", "eos_token_id", "eot_token_id", "header_start_token_id", "header_end_token_id")
    assert dataclasses.replace(derived, **{key: getattr(PRESETS[name], key) for key in ids}) == PRESETS[name]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("granularity", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("expansion", [2, 4, 8, 16, 32])
def test_dials_follow_the_general_rule_and_keep_active_ffn_width(expansion, granularity, shared):
    if shared and granularity == 1:
        assert "granularity is 1" in refusal(family_member, 768, expansion=expansion, granularity=1)
        return
    c = family_member(768, expansion=expansion, granularity=granularity, shared=shared)
    assert c.intermediate_size == 4 * 768 // granularity
    fused = granularity // 2 if shared else 0
    assert c.num_local_experts == expansion * granularity - fused
    assert c.num_experts_per_tok == granularity - fused
    assert c.intermediate_size_mlp == fused * c.intermediate_size
    assert c.num_experts_per_tok * c.intermediate_size + c.intermediate_size_mlp == 4 * 768
    assert c.num_local_experts * c.intermediate_size + c.intermediate_size_mlp == expansion * 4 * 768


@pytest.mark.parametrize("shared", [True, False])
def test_expansion_1_is_the_plain_dense_ffn(shared):
    c = family_member(768, expansion=1, granularity=8, shared=shared)
    assert (c.ffn_type, c.intermediate_size, c.intermediate_size_mlp, c.num_local_experts) == ("dense", 3072, 0, 0)
    assert not c.has_expert_bias


def test_the_dense_baseline_is_one_full_layer_then_three_with_a_window():
    c = PRESETS["mobilellm-pro"]
    assert (c.num_hidden_layers, c.hidden_size, c.intermediate_size, c.vocab_size) == (30, 1280, 6144, 202_048)
    assert (c.num_attention_heads, c.num_key_value_heads, c.head_dim) == (20, 4, 64)
    assert c.scale == 0.1
    assert [c.window(layer) is None for layer in range(30)] == ([True, False, False, False] * 8)[:30]
    assert c.window(1) == 8192


def test_olmoe_routes_by_softmax_without_renormalising_or_a_shared_expert():
    c = PRESETS["olmoe-1b-7b"]
    assert (c.num_hidden_layers, c.hidden_size, c.vocab_size, c.tie_word_embeddings) == (16, 2048, 50_304, False)
    assert (c.num_local_experts, c.num_experts_per_tok, c.intermediate_size) == (64, 8, 1024)
    assert (c.intermediate_size_mlp, c.router_score, c.norm_topk_prob) == (0, "softmax", False)
    assert (c.num_attention_heads, c.num_key_value_heads, c.qk_norm) == (16, 16, "projection_weight")
    assert not c.has_expert_bias


@pytest.mark.parametrize("hidden", [32, 64, 96, 128, 160, 192, 224])
def test_members_below_256_have_heads_of_32_and_key_value_heads_that_divide_them(hidden):
    c = family_member(hidden, vocab_size=96)
    assert (c.head_dim, c.num_attention_heads) == (32, hidden // 32)
    assert c.num_key_value_heads <= min(4, c.num_attention_heads)


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(UsageError, match="there is no preset 'XL': choose one of S, M, L, nano"):
        preset("XL")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: derive(0), "active 0"),
        (lambda: derive(float("nan")), "active is nan"),
        (lambda: derive(1e6), "active is 1e+06"),
        (lambda: derive(1e15), "active is 1e+15"),
        (lambda: derive(3e8, granularity=8209, shared=False), "granularity 8209"),
        (lambda: derive(3e8, granularity=0), "granularity 0"),
        (lambda: derive(3e8, expansion=0), "expansion is 0"),
        (lambda: family_member(100), "hidden_size is 100, not a multiple of the head_dim 32"),
        (lambda: family_member(768, granularity=5), "granularity is 5, but must divide the FFN width 3072"),
        (lambda: family_member(768, layers=-1), "num_hidden_layers is -1"),
    ],
)
def test_dials_that_give_no_model_are_refused_by_name(make, words):
    assert words in refusal(make)


def test_each_choice_of_e_g_and_s_is_a_model_and_comes_once():
    knobs = list(family_knobs([1, 8], [1, 3, 8], [0, 1]))
    assert knobs == [(1, 1, 0), (8, 1, 0), (8, 3, 0), (8, 8, 0), (8, 8, 1)]
    for expansion, granularity, shared in knobs:
        family_member(384, expansion=expansion, granularity=granularity, shared=bool(shared))
