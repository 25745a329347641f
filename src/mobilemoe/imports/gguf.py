"""A GGUF file of the kind that `export` writes, read back into a checkpoint folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilemoe.checkpoint import Checkpoint, Format, Report, compare
from mobilemoe.checkpoint.container import is_finite
from mobilemoe.checkpoint.layout import weights
from mobilemoe.checkpoint.writing import encoder, stored_config, write_folder
from mobilemoe.config import GroupAxis
from mobilemoe.errors import CheckpointError
from mobilemoe.export.gguf_blocks import from_q4_0
from mobilemoe.export.gguf_layout import Tensor, tensors
from mobilemoe.files import refuse_existing, scratch_folder
from mobilemoe.imports.gguf_config import read_config
from mobilemoe.imports.gguf_file import GgufFile
from mobilemoe.imports.gguf_vocabulary import read_tokenizer, write_companions

Floats = npt.NDArray[np.float32]


def convert_gguf(path: Path, out: Path, *, format: Format, group_axis: GroupAxis = "in") -> Report:
    """Writes the model in the file `path` as the new checkpoint folder `out`; reports the error of each kind.

    Weights of type Q4_0 become INT4 with groups along the input bit for bit. CheckpointError, ConfigError or
    TokenizerError names the file and what in it is damaged or not read here.
    """
    refuse_existing(out, CheckpointError)
    file = GgufFile(path)
    tokenizer = read_tokenizer(file)
    config = stored_config(read_config(file, tokenizer), format, group_axis)
    source = _Source(file, list(tensors(config)))
    encode = encoder(config, source.weight)
    copied = {
        name: (weight.name, at)
        for weight in weights(config).values()
        if weight.lies_along_inputs(config.expert_group_axis)
        if source.is_q4_0(weight.name)
        for at, name in enumerate(weight.int4_names)
    }

    def produce(stored: str) -> npt.NDArray[Any]:
        return source.int4(*copied[stored]) if stored in copied else encode(stored)

    with scratch_folder() as companions:
        write_companions(file, tokenizer, companions)
        write_folder(out, config, produce, beside=companions)
    with Checkpoint.open(out) as written:
        return compare(source.weight, written)


class _Source:
    """The weights of a GGUF file by canonical name."""

    def __init__(self, file: GgufFile, layout: list[Tensor]) -> None:
        self._file = file
        self._parts: dict[str, list[Tensor]] = {}
        for tensor in layout:
            if tensor.weight is not None and not (tensor.name == "output.weight" and tensor.weight in self._parts):
                self._parts.setdefault(tensor.weight, []).append(tensor)

    def is_q4_0(self, weight: str) -> bool:
        return all(self._file.tensors[part.name].type == "q4_0" for part in self._parts[weight])

    def weight(self, name: str) -> Floats:
        """The weight in logical shape: matrices [out, in], experts [E, in, out]."""
        w = _join([(self._file.floats(part.name), part) for part in self._parts[name]])
        return w.swapaxes(-1, -2) if w.ndim == 3 else w

    def int4(self, name: str, at: int) -> npt.NDArray[Any]:
        """The nibbles (`at` 0) or the scales (1) of a weight that is Q4_0, experts as [E, out, in]."""
        joined = _join([(from_q4_0(self._file.array(part.name))[at], part) for part in self._parts[name]])
        if at == 1 and not is_finite(joined, "F16"):
            raise CheckpointError(
                f"{self._file.path}: tensor {self._parts[name][0].name} holds NaN or infinity, "
                "with which no model can compute"
            )
        return joined


def _join(pieces: list[tuple[npt.NDArray[Any], Tensor]]) -> npt.NDArray[Any]:
    """The whole of the pieces: each holds the outputs of its tensor's rows; outputs are the last axis but one."""
    if len(pieces) == 1 and pieces[0][1].rows is None:
        return pieces[0][0]
    axis = max(pieces[0][0].ndim - 2, 0)
    shape = list(pieces[0][0].shape)
    shape[axis] = sum(data.shape[axis] for data, _ in pieces)
    whole = np.empty(shape, pieces[0][0].dtype)
    for data, tensor in pieces:
        whole[(*(slice(None),) * axis, slice(None) if tensor.rows is None else tensor.rows)] = data
    return whole
