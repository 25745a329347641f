"""The device that trains: its threads, the speed of its matrix products, and the precision that is faster on it."""

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
_CPU_WIDTH = 256  # without bf16 units a product of this width takes about 20 ms, and a wider one seconds


def set_threads(train: TrainTable) -> int:
    """Sets the number of torch's threads, and returns it: the recipe's, or one for each core that this process may use.

    OMP_NUM_THREADS, which launchers of several processes set, lowers the default.
    """
    torch.set_num_threads(train.threads or min(torch.get_num_threads(), allowed_cores()))
    return torch.get_num_threads()


def settle(recipe: _Recipe, device: torch.device, run: Path | None = None) -> _Recipe:
    """`recipe` with "auto" replaced: by the precision of the checkpoints in `run`, or by the faster one on `device`.

    Weights that are stored in bf16 are multiplied in bf16. Raises TrainError where the run's own recipe cannot be read.
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
    """The precision in the recipe that the run keeps; None where there is no recipe or no usable precision in it."""
    if not (run / RECIPE_FILE).exists():
        return None
    train = read_json(run / RECIPE_FILE, TrainError).get("train")
    return train["precision"] if isinstance(train, dict) and train.get("precision") in DTYPES else None


@cache
def faster_precision(device_type: str) -> Precision:
    """bf16 on a GPU; on a CPU the one whose matrix products are faster, which takes about 0.2 s to measure.

    The CPU's feature flags do not show it: a library may be set not to use the bf16 units, and without such units bf16
    is emulated, at half the speed of fp32 with AVX-512 and at a hundredth with AVX2.
    """
    if device_type != "cpu":
        return "bf16"
    with _one_thread():
        bf16, fp32 = (torch.ones(_CPU_WIDTH, _CPU_WIDTH, dtype=DTYPES[name]) for name in ("bf16", "fp32"))
        pairs = [(_seconds_of_product(bf16), _seconds_of_product(fp32))]
        end = time.perf_counter() + _CHOICE_SECONDS
        while time.perf_counter() < end or len(pairs) < 3:  # alternately, so that other load on the machine slows both
            pairs.append((_seconds_of_product(bf16), _seconds_of_product(fp32)))
    bf16_seconds, fp32_seconds = map(min, zip(*pairs[1:], strict=True))  # the first pair includes one-time set-up
    return "bf16" if bf16_seconds < fp32_seconds else "fp32"


def matmul_flops(device: torch.device, precision: str) -> float:
    """FLOP/s of a square matrix product: of width 8192 on a GPU; on a CPU of width 256, measured on one thread and
    multiplied by the number of threads that run at once."""
    if device.type == "cpu":
        with _one_thread():
            speed = _matmul_flops(_CPU_WIDTH, device, precision)
        return speed * min(torch.get_num_threads(), allowed_cores())
    return _matmul_flops(_GPU_WIDTH, device, precision)


def _matmul_flops(size: int, device: torch.device, precision: str) -> float:
    matrix = torch.randn(size, size, device=device, dtype=DTYPES[precision])
    _seconds_of_product(matrix)  # the first one includes one-time set-up
    best, end = float("inf"), time.perf_counter() + MATMUL_SECONDS
    while time.perf_counter() < end or best == float("inf"):
        best = min(best, _seconds_of_product(matrix))
    return float(2 * size**3 / best)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Runs with one thread: on a busy machine, threads spend more time waiting for each other than computing."""
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
