"""The device: its threads, how fast it multiplies matrices, and the precision in which it does so faster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from mobilemoe.checkpoint.run_folder import step_folders
from mobilemoe.cores import allowed_cores
from mobilemoe.errors import TrainError
from mobilemoe.files import read_json
from mobilemoe.train.kept_recipe import RECIPE_FILE
from mobilemoe.train.recipe import Precision, Recipe, TrainTable

_Recipe = TypeVar("_Recipe", bound=Recipe)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
MATMUL_SECONDS = 0.25
_CHOICE_SECONDS = 0.1
_GPU_WIDTH = 8192
_CPU_WIDTH = 256  # without bf16 units a product of this width takes a CPU some 20 ms, a wider one seconds


def set_threads(train: TrainTable) -> int:
    """Gives torch the recipe's threads, by default one for each core that this process may use; returns how many.

    OMP_NUM_THREADS, which launchers set, may ask for fewer.
    """
    torch.set_num_threads(train.threads or min(torch.get_num_threads(), allowed_cores()))
    return torch.get_num_threads()


def settle(recipe: _Recipe, device: torch.device, run: Path | None = None) -> _Recipe:
    """`recipe` with a precision in place of "auto": that of the checkpoints in `run`, or the faster one on `device`.

    Weights that are kept in bf16 are multiplied in it. Raises TrainError where the run's own recipe cannot be read.
    """
    if recipe.train.precision != "auto":
        return recipe
    if recipe.train.weights == "bf16":
        return with_precision(recipe, "bf16")
    precision = _precision_of(run) if run is not None and step_folders(run) else None
    return with_precision(recipe, precision or faster_precision(device.type))


def with_precision(recipe: _Recipe, precision: Precision) -> _Recipe:
    """The same recipe in `precision`."""
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": precision})})


def _precision_of(run: Path) -> Precision | None:
    """What the recipe of a run says; None where there is none, or one that says nothing of use."""
    if not (run / RECIPE_FILE).exists():
        return None
    train = read_json(run / RECIPE_FILE, TrainError).get("train")
    return train["precision"] if isinstance(train, dict) and train.get("precision") in DTYPES else None


@cache
def faster_precision(device_type: str) -> Precision:
    """bf16 on a GPU, and on a CPU the one whose products are faster, which takes some 0.2 s to measure.

    Measured, since the CPU's features alone do not say it: a library may be told to leave bf16 units unused, and one
    that has none may still emulate them, at half of fp32's speed (AVX-512) or at a hundredth (AVX2).
    """
    if device_type != "cpu":
        return "bf16"
    with _one_thread():
        bf16, fp32 = (torch.ones(_CPU_WIDTH, _CPU_WIDTH, dtype=DTYPES[name]) for name in ("bf16", "fp32"))
        pairs = [(_seconds_of_product(bf16), _seconds_of_product(fp32))]
        end = time.perf_counter() + _CHOICE_SECONDS
        while time.perf_counter() < end or len(pairs) < 3:  # in turns, so that both meet what else runs here
            pairs.append((_seconds_of_product(bf16), _seconds_of_product(fp32)))
    bf16_seconds, fp32_seconds = map(min, zip(*pairs[1:], strict=True))  # the first pays for what is set up once
    return "bf16" if bf16_seconds < fp32_seconds else "fp32"


def matmul_flops(device: torch.device, precision: str) -> float:
    """FLOP/s of a square matrix product: 8192 wide on a GPU, and on a CPU 256, that of one thread times all of them."""
    if device.type == "cpu":
        with _one_thread():
            speed = _matmul_flops(_CPU_WIDTH, device, precision)
        return speed * torch.get_num_threads()
    return _matmul_flops(_GPU_WIDTH, device, precision)


def _matmul_flops(size: int, device: torch.device, precision: str) -> float:
    matrix = torch.randn(size, size, device=device, dtype=DTYPES[precision])
    _seconds_of_product(matrix)  # the first one pays for what is set up once
    best, end = float("inf"), time.perf_counter() + MATMUL_SECONDS
    while time.perf_counter() < end or best == float("inf"):
        best = min(best, _seconds_of_product(matrix))
    return float(2 * size**3 / best)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Several threads on a busy machine wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _seconds_of_product(matrix: Tensor) -> float:
    began = time.perf_counter()
    matrix @ matrix
    if matrix.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began
