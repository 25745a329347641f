"""Weights that are not numbers are refused with one sentence before they are ever used."""

import numpy as np
import pytest

from engine_models import write_small
from mobilemoe.checkpoint import SafetensorsFile
from mobilemoe.engine import Engine
from mobilemoe.errors import CheckpointError


def poison(folder, tensor, bits):
    """The last number of a 16-bit tensor gets these bits."""
    path = folder / "model.safetensors"
    with SafetensorsFile(path) as file:
        array = file.array(tensor)
        data = path.read_bytes()
        end = data.index(array.tobytes()) + array.nbytes
    path.write_bytes(data[: end - 2] + np.uint16(bits).tobytes() + data[end:])


@pytest.mark.parametrize("axis", ["in", "out"])
@pytest.mark.parametrize(
    ("tensor", "bits"),
    [
        ("model.embed_tokens.weight_scale", 0x7E00),
        ("model.layers.1.feed_forward.experts.down_scale", 0xFC00),
        ("model.layers.2.post_attention_layernorm.weight", 0x7FC0),
        ("model.layers.0.feed_forward.expert_bias", 0xFF80),
    ],
)
def test_weights_that_are_not_numbers_are_refused_by_name(tmp_path, axis, tensor, bits):
    folder = write_small(tmp_path / "model", axis)
    poison(folder, tensor, bits)
    with pytest.raises(CheckpointError, match=f"{tensor} holds NaN or infinity"):
        Engine(folder)
