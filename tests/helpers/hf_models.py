"""Random checkpoints, opened by transformers through `mobilemoe.hf`, for the tests of that room."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import mobilemoe.hf  # noqa: F401 (registers the classes)
from mobilemoe.checkpoint import write_random
from mobilemoe.config import ModelConfig
from model_configs import GROUPED_QUERIES, SHORT_SCALING, VOCABULARY

# Short scaling, a shared expert, grouped queries: what the released models have, within 20 tokens.
FAMILY_LIKE = dataclasses.replace(
    GROUPED_QUERIES, rope_scaling=SHORT_SCALING, max_position_embeddings=256, bos_token_id=1, eos_token_id=(2, 3)
)
FORMS = {"bf16": {"format": "bf16"}, "int4-in": {"format": "int4"}, "int4-out": {"format": "int4", "group_axis": "out"}}


def write(folder: Path, config: ModelConfig = FAMILY_LIKE, form: str = "bf16", seed: int = 1) -> Path:
    """Writes random weights of one of FORMS into `folder`, which must not exist."""
    write_random(folder, config, seed=seed, **FORMS[form])
    return folder


def opened(folder: Path, **options):
    """The folder as transformers opens it, in fp32 unless told otherwise; nothing is missing or left over."""
    options = {"dtype": torch.float32, **options}
    model, notes = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert {kind: names for kind, names in notes.items() if names} == {}
    return model


def tokens(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(4, VOCABULARY, shape))


def assert_near(got: torch.Tensor, want: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Largest difference against the largest value."""
    assert got.shape == want.shape
    assert (got - want).abs().max() <= tolerance * want.abs().max()
