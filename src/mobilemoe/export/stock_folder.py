"""Writing a checkpoint folder of a stock architecture: its tensors from ours, what belongs beside them, the error.

Legend: E experts, O outputs, I inputs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from mobilemoe.checkpoint import Checkpoint, Differences, Report, SafetensorsFile, write_safetensors
from mobilemoe.checkpoint.companions import copy_companions
from mobilemoe.checkpoint.container import Array, Spec, is_finite
from mobilemoe.config import GROUP_SIZE
from mobilemoe.errors import CheckpointError, UsageError
from mobilemoe.export.glm4moe_layout import Tensor
from mobilemoe.export.stock import Floats, matrices
from mobilemoe.files import atomic_folder, write_json
from mobilemoe.progress import each
from mobilemoe.tokenizer import Tokenizer

Stored: TypeAlias = dict[str, tuple[Spec, Callable[[], Array]]]  # by name: what is stored, and what gives it
Encode: TypeAlias = Callable[["StockWeights", str, Tensor], Stored]
Decode: TypeAlias = Callable[[SafetensorsFile, str], Floats]
VALUES_IN_WORD = 8  # of 4 bits, in 32
_WEIGHTS = "model.safetensors"


class StockWeights:
    """The weights of an open checkpoint as the tensors of a stock architecture."""

    def __init__(self, source: Checkpoint) -> None:
        self._source, self._matrix = source, matrices(source)

    def floats(self, tensor: Tensor) -> Floats:
        """The tensor in fp32, exactly."""
        if tensor.weight is None:
            return np.full(tensor.shape, tensor.fill, np.float32)
        w = self._matrix(tensor.weight)
        if tensor.expert is not None:
            w = w[tensor.expert]
        rows = _rows(tensor)
        return np.ascontiguousarray(w[rows] if w.ndim == 1 else w[..., rows, :])

    def int4(self, tensor: Tensor) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16]]:
        """Nibbles [..., O, I/2] and scales [..., O, I/32] of a matrix whose groups lie along its inputs, as stored."""
        *outputs, inputs = tensor.shape
        if tensor.weight is None:
            return np.zeros((*outputs, inputs // 2), np.uint8), np.zeros((*outputs, inputs // GROUP_SIZE), np.float16)
        nibbles, scales = (self._source.array(name) for name in self._source.weights[tensor.weight].int4_names)
        if tensor.expert is not None:
            nibbles, scales = nibbles[tensor.expert], scales[tensor.expert]
        return nibbles[..., _rows(tensor), :], scales[..., _rows(tensor), :]


def _rows(tensor: Tensor) -> npt.NDArray[np.intp] | slice:
    return slice(None) if tensor.rows is None else tensor.rows


def write_stock_folder(
    source: Checkpoint,
    out: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    encode: Encode,
    decode: Decode,
) -> Report:
    """Writes `tensors` of the open checkpoint as the new folder `out`, its tokenizer beside them; reports the error.

    `encode` says how a tensor is stored, and `decode` reads it back. CheckpointError, TokenizerError.
    """
    folder = source.folder
    if any(os.path.lexists(folder / name) for name in ("tokenizer.json", "tokenizer.model")):
        Tokenizer.load(folder)  # a damaged one is refused here, and not in the other runtime
    stock = StockWeights(source)
    stored = {at: entry for name, tensor in tensors.items() for at, entry in encode(stock, name, tensor).items()}

    def finite(name: str) -> Array:
        (dtype, _), produce = stored[name]
        if not is_finite(array := produce(), dtype):
            raise CheckpointError(f"{folder}: {name} would hold NaN or infinity, with which no model can compute")
        return array

    with atomic_folder(out, CheckpointError) as part:
        write_json(part / "config.json", config)
        write_safetensors(part / _WEIGHTS, {name: spec for name, (spec, _) in stored.items()}, finite)
        copy_companions(folder, part)
    found = Differences()
    with SafetensorsFile(out / _WEIGHTS) as written:
        for name, tensor in each(tensors.items(), "weights compared"):
            if tensor.weight is not None:
                found.add(source.weights[tensor.weight].kind, stock.floats(tensor), decode(written, name))
    return found.report()


def check_packable(source: Checkpoint, target: str) -> None:
    """UsageError unless all matrices are INT4 in groups along their inputs, as `target` holds them."""
    axis = source.config.expert_group_axis
    if axis is None:
        raise UsageError(
            f"{target} takes INT4 weights as they are, but those of {source.folder} are not: "
            f"`mobilemoe quantize {source.folder} DST` makes them so"
        )
    if axis != "in":
        raise UsageError(
            f"{target} has groups along the inputs only, but the experts of {source.folder} are grouped along their "
            f"outputs: `mobilemoe convert {source.folder} DST --format int4` rounds them again and says by how much"
        )


def offset_words(nibbles: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Nibbles [..., I/2] as words [..., I/8] of eight values each, the first lowest, with 8 added to each value."""
    return np.ascontiguousarray(nibbles ^ np.uint8(0x88)).view("<u4")


def from_offset_words(words: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The nibbles of `offset_words`, of words that may be called signed."""
    return np.ascontiguousarray(words).view(np.uint8) ^ np.uint8(0x88)


def to_f16(w: Floats, name: str) -> npt.NDArray[np.float16]:
    """fp32 -> the nearest fp16; CheckpointError names `name` if one is not finite there."""
    with np.errstate(over="ignore"):
        rounded = w.astype(np.float16)
    if not np.isfinite(rounded).all():
        raise CheckpointError(f"{name} holds weights that are not finite or exceed the range of fp16")
    return rounded
