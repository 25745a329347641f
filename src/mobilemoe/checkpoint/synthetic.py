"""Random checkpoints of any size: stand-ins for the gated releases in tests, benchmarks and demonstrations."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import numpy as np

from mobilemoe.checkpoint import int4
from mobilemoe.checkpoint.container import Array
from mobilemoe.checkpoint.layout import Weight, stored_tensors, weights
from mobilemoe.checkpoint.writing import Format, stored_config, write_folder
from mobilemoe.config import GroupAxis, ModelConfig

STD = 0.02  # of matrix weights
_BIAS_STD = 0.1  # sigmoid scores spread by about 0.2, so the bias changes some choices and does not decide all
_Q_STD = 3.1  # of nibbles: 32 normal weights reach about 2.4 sigma, which amax / 7.5 maps to 7.5


def write_random(
    folder: Path | str, config: ModelConfig, *, seed: int, format: Format, group_axis: GroupAxis = "in"
) -> None:
    """Writes a checkpoint of normal weights (std 0.02), the same for the same arguments on every machine.

    INT4 draws nibbles and scales directly, so the two formats of one seed are different models. Norm weights are
    near 1 and the router spreads its logits by about 1, so that routing is neither uniform nor stuck.
    CheckpointError if `folder` exists.
    """
    config = stored_config(config, format, group_axis)
    axis = config.expert_group_axis
    drawers: dict[str, Callable[[np.random.Generator], Array]] = {}
    for weight in weights(config).values():
        for name, (dtype, shape) in stored_tensors(weight, axis).items():
            drawers[name] = _drawer(weight, dtype, shape)

    def produce(name: str) -> Array:
        # Each tensor has its own random stream: its values do not depend on the order in which files are written.
        return drawers[name](np.random.default_rng([seed, zlib.crc32(name.encode())]))

    write_folder(folder, config, produce)


def _drawer(weight: Weight, dtype: str, shape: tuple[int, ...]) -> Callable[[np.random.Generator], Array]:
    if dtype == "U8":
        return lambda rng: _random_nibbles(rng, shape)
    if dtype == "F16":
        return lambda rng: (rng.uniform(0.8, 1.2, shape) * (STD / _Q_STD)).astype(np.float16)
    mean, std = 0.0, STD
    if weight.kind == "norm":
        mean, std = 1.0, 0.1
    elif weight.storage == "router":
        std = shape[-1] ** -0.5
    elif weight.storage == "vector":
        std = _BIAS_STD

    def draw(rng: np.random.Generator) -> Array:
        w = rng.standard_normal(shape, np.float32)
        w *= std
        w += mean
        return w if dtype == "F32" else int4.to_bf16(w)

    return draw


def _pair_table() -> Array:
    """From two random bytes to two packed nibbles: the quantiles of a normal distribution, symmetric about zero."""
    normal = NormalDist(0, _Q_STD)
    values = np.array([normal.inv_cdf((byte + 0.5) / 256) for byte in range(256)])
    nibbles = np.clip(np.rint(values), -7, 7).astype(np.int8)
    low, high = np.meshgrid(nibbles, nibbles)
    return int4.pack(np.stack([low, high], axis=-1))[..., 0].reshape(-1)


_PAIRS = _pair_table()


def _random_nibbles(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return np.take(_PAIRS, rng.integers(0, 2**16, shape, np.uint16))
