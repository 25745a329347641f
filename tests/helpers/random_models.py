"""Small models in float64 with random weights, for the tests of the model's parts."""

import dataclasses

import pytest
import torch
from torch import Tensor

from mobilemoe.config import FULL, SLIDING, ModelConfig
from mobilemoe.model import MobileMoE
from model_configs import CONFIGS, FAMILY

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


def random_choice(tokens: int, experts: int, active: int, generator: torch.Generator) -> Tensor:
    return torch.rand(tokens, experts, generator=generator).argsort(dim=-1)[:, :active]
