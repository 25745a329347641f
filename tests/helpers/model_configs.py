"""Small models of every kind that the specification knows, by name, and how far two rows of logits are apart."""

import dataclasses

import numpy as np

from mobilemoe.checkpoint import Checkpoint
from mobilemoe.config import FULL, SLIDING, ModelConfig, RopeScaling
from mobilemoe.model import MobileMoE
from mobilemoe.presets import family_member

TOKENS = 20
VOCABULARY = 96

# The released scaling moves only wavelengths beyond 8192; a short context brings both branches into a short test.
SHORT_SCALING = RopeScaling(original_max_position_embeddings=64)
BLENDED_SCALING = RopeScaling(
    factor=8.0, original_max_position_embeddings=256, low_freq_factor=1.0, high_freq_factor=4.0
)

FAMILY = family_member(64, vocab_size=VOCABULARY, layers=3, rope_scaling=RopeScaling())
GROUPED_QUERIES = ModelConfig(
    vocab_size=VOCABULARY,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=32,
    intermediate_size_mlp=64,
    num_local_experts=6,
    num_experts_per_tok=2,
)
NANO_IDS = {  # of nano's tokenizer, for models that are saved with it
    "bos_token_id": 16378,
    "eos_token_id": (16379, 16382, 16383),
    "eot_token_id": 16383,
    "header_start_token_id": 16380,
    "header_end_token_id": 16381,
}
DENSE = ModelConfig(
    vocab_size=VOCABULARY,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=16,
    ffn_type="dense",
    intermediate_size=96,
)


def but(config: ModelConfig, **changes: object) -> ModelConfig:
    return dataclasses.replace(config, **changes)


SLIDING_LAYERS = {"sliding_window": 7, "layer_types": (FULL, SLIDING, SLIDING)}
CONFIGS = {
    "family": FAMILY,
    "one-head": family_member(32, expansion=4, granularity=4, layers=2, vocab_size=VOCABULARY),
    "three-heads": family_member(96, expansion=2, granularity=4, layers=2, vocab_size=VOCABULARY),
    "no-shared-expert": family_member(64, expansion=3, granularity=4, shared=False, layers=2, vocab_size=VOCABULARY),
    "one-of-many": family_member(64, expansion=4, granularity=1, shared=False, layers=2, vocab_size=VOCABULARY),
    "grouped-queries": GROUPED_QUERIES,
    "short-scaling": but(GROUPED_QUERIES, rope_scaling=SHORT_SCALING),
    "blended-scaling": but(GROUPED_QUERIES, rope_scaling=BLENDED_SCALING, rope_theta=10_000.0),
    "no-qk-norm": but(GROUPED_QUERIES, qk_norm="none"),
    "head-weight": but(GROUPED_QUERIES, qk_norm="head_weight"),
    "no-renormalisation": but(GROUPED_QUERIES, norm_topk_prob=False, routed_scaling_factor=1.3),
    "softmax-renormalised": but(GROUPED_QUERIES, router_score="softmax", intermediate_size_mlp=0),
    "every-expert": but(GROUPED_QUERIES, num_experts_per_tok=6),
    "untied": but(GROUPED_QUERIES, tie_word_embeddings=False, rms_norm_eps=1e-3),
    "dense": DENSE,
    "pro-like": but(DENSE, attention_scale=0.1, **SLIDING_LAYERS),
    "window-of-one": but(DENSE, sliding_window=1, layer_types=(SLIDING, FULL, SLIDING)),
    "wide-window": but(DENSE, sliding_window=TOKENS, layer_types=(SLIDING,) * 3),
    "olmoe-like": but(
        GROUPED_QUERIES,
        num_key_value_heads=4,
        intermediate_size_mlp=0,
        router_score="softmax",
        norm_topk_prob=False,
        routed_scaling_factor=1.0,
        qk_norm="projection_weight",
        tie_word_embeddings=False,
        rope_theta=10_000.0,
    ),
}


def loaded(folder) -> MobileMoE:
    with Checkpoint.open(folder) as checkpoint:
        model = MobileMoE(checkpoint.config)
        model.load_weights(checkpoint.weight)
    return model.eval()


def error_per_position(a_TV: np.ndarray, b_TV: np.ndarray) -> np.ndarray:
    """max|a - b| / max|b|."""
    return np.abs(a_TV - b_TV).max(axis=1) / np.abs(b_TV).max(axis=1)
