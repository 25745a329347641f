"""The PyTorch model computes what spec section 2 says, for every kind of model and every stored format."""

import numpy as np
import pytest
import torch

from mobilemoe.checkpoint import write_random
from mobilemoe.config import FULL, SLIDING
from mobilemoe.model import MobileMoE
from model_configs import (
    CONFIGS,
    FAMILY,
    GROUPED_QUERIES,
    SHORT_SCALING,
    TOKENS,
    VOCABULARY,
    but,
    error_per_position,
    loaded,
)
from reference import reference_logits

FORMATS = {
    "int4-out": {"format": "int4", "group_axis": "out"},
    "int4-in": {"format": "int4", "group_axis": "in"},
    "bf16": {"format": "bf16"},
}


@torch.no_grad()
def logits_of(model: MobileMoE, ids: list[int]) -> np.ndarray:
    return model(torch.tensor([ids]))[0].numpy()


def check(folder, ids: list[int]) -> None:
    want_TV = reference_logits(folder, ids)
    model = loaded(folder)
    fp32_TV = logits_of(model, ids)
    fp64_TV = logits_of(model.double(), ids)

    assert fp64_TV.dtype == np.float64
    assert error_per_position(fp64_TV, want_TV).max() < 1e-10

    assert fp32_TV.dtype == np.float32
    error_T = error_per_position(fp32_TV, want_TV)
    assert error_T.max() < 1e-3
    top_T2 = np.sort(want_TV, axis=1)[:, -2:]
    clear_T = top_T2[:, 1] - top_T2[:, 0] > 1e-3 * np.abs(want_TV).max(axis=1)
    assert clear_T.any()
    np.testing.assert_array_equal(fp32_TV.argmax(axis=1)[clear_T], want_TV.argmax(axis=1)[clear_T])


@pytest.mark.parametrize("stored", FORMATS)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_kind_of_model_agrees_with_the_reference(name, stored, tmp_path):
    config, seed = CONFIGS[name], list(CONFIGS).index(name)
    write_random(tmp_path / "model", config, seed=seed, **FORMATS[stored])
    check(tmp_path / "model", np.random.default_rng(seed).integers(0, VOCABULARY, TOKENS).tolist())


@pytest.mark.parametrize("seed", range(100, 106))
def test_the_released_layout_agrees_with_the_reference_for_many_seeds(seed, tmp_path):
    write_random(tmp_path / "model", FAMILY, seed=seed, format="int4", group_axis="out")
    length = (1, 2, 5, 9, 17, 33)[seed % 6]
    check(tmp_path / "model", np.random.default_rng(seed).integers(0, VOCABULARY, length).tolist())


def test_the_reference_tells_its_models_apart(tmp_path):
    """Each feature moves the logits, so that agreement means something."""
    ids = list(range(3, 3 + TOKENS))
    write_random(tmp_path / "base", GROUPED_QUERIES, seed=1, format="bf16")
    base_TV = reference_logits(tmp_path / "base", ids)
    changes = {
        "scaling": {"rope_scaling": SHORT_SCALING},
        "norm": {"qk_norm": "none"},
        "scale": {"attention_scale": 0.1},
        "window": {"sliding_window": 7, "layer_types": (FULL, SLIDING)},
        "renormalisation": {"norm_topk_prob": False},
        "routed": {"routed_scaling_factor": 1.0},
        "active": {"num_experts_per_tok": 3},
        "eps": {"rms_norm_eps": 1e-3},
    }
    for name, change in changes.items():
        write_random(tmp_path / name, but(GROUPED_QUERIES, **change), seed=1, format="bf16")
        other_TV = reference_logits(tmp_path / name, ids)
        assert error_per_position(other_TV, base_TV)[-1] > 1e-5, name
