"""`draft.safetensors`, the draft head of a model, beside its weights (docs/guide.md, Draft heads), in INT4 like them.

D hidden, F width, K tokens of the shortlist.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mobilemoe.checkpoint import int4
from mobilemoe.checkpoint.container import Array, SafetensorsFile, Spec, shorten, write_safetensors
from mobilemoe.config import GROUP_SIZE, ModelConfig
from mobilemoe.errors import CheckpointError

DRAFT = "draft.safetensors"
FORMAT = "mobilemoe-draft-int4-g32"  # what the file's metadata calls itself, under "draft"
SHORTLIST, LAYERS = "shortlist", "layers"
_LARGEST = 2**20  # of F and K, as in the native reader


@dataclass(frozen=True)
class DraftShape:
    """The sizes of a draft head: those of the model's hidden states, of its own layer, and of its shortlist.

    `layers` are those of the model, from 0, whose outputs it reads beside that of the last norm.
    """

    hidden_size: int
    width: int
    shortlist: int
    layers: tuple[int, ...] = ()

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """[out, in] of each matrix."""
        d, f = self.hidden_size, self.width
        return {
            "first_proj": (d, (2 + len(self.layers)) * d),
            "in_proj": (d, 2 * d),
            "gate_proj": (f, d),
            "up_proj": (f, d),
            "down_proj": (d, f),
            "head": (self.shortlist, d),
        }

    @property
    def tensors(self) -> dict[str, Spec]:
        """The tensors of the file."""
        table: dict[str, Spec] = {SHORTLIST: ("I32", (self.shortlist,)), LAYERS: ("I32", (len(self.layers),))}
        for name, (rows, columns) in self.matrices.items():
            table[f"{name}.qweight"] = ("U8", (rows, columns // 2))
            table[f"{name}.weight_scale"] = ("F16", (rows, columns // GROUP_SIZE))
        return table


def write_draft(
    path: Path,
    weight: Callable[[str], npt.NDArray[np.float32]],
    shortlist_K: npt.NDArray[np.integer],
    layers: Sequence[int] = (),
) -> None:
    """Writes a draft head, rounded to INT4 as the model's weights are, from its matrices [out, in] in fp32 by name.

    CheckpointError if a weight is not finite or its columns cannot be cut into groups of 32.
    """
    width, hidden_size = weight("gate_proj").shape
    shape = DraftShape(hidden_size, width, len(shortlist_K), tuple(layers))

    def produce(stored: str) -> Array:
        if stored in (SHORTLIST, LAYERS):
            return np.array(shortlist_K if stored == SHORTLIST else layers, np.int32)
        name, _, part = stored.partition(".")
        nibbles, scales = int4.quantize(weight(name), f"{name} of the draft head")
        return nibbles if part == "qweight" else scales

    write_safetensors(path, shape.tensors, produce, {"draft": FORMAT})


class DraftFile:
    """An open draft head that fits the model of `config`; CheckpointError names the file and what is wrong with it."""

    def __init__(self, path: Path, config: ModelConfig) -> None:
        self._file = SafetensorsFile(path)
        if self._file.metadata.get("draft") != FORMAT:
            found = shorten(self._file.metadata.get("draft", ""))
            raise CheckpointError(f"{path} is no draft head of this version: its metadata say {found}, not {FORMAT!r}")
        self.shape = self._read_shape(config)
        found_specs = {name: (info.dtype, info.shape) for name, info in self._file.tensors.items()}
        if found_specs != self.shape.tensors:
            name = min(name for name, _ in found_specs.items() ^ self.shape.tensors.items())
            raise CheckpointError(
                f"{path}: tensor {shorten(name)} is {found_specs.get(name, 'missing')}, but a draft head for a model "
                f"of width {config.hidden_size} needs {self.shape.tensors.get(name, 'no such tensor')}"
            )
        self.shortlist_K = self._file.array(SHORTLIST)
        ascends = bool((np.diff(self.shortlist_K) > 0).all())
        if not ascends or self.shortlist_K[0] < 0 or self.shortlist_K[-1] >= config.vocab_size:
            raise CheckpointError(f"{path}: its shortlist does not hold ascending ids below {config.vocab_size}")

    @property
    def bytes(self) -> int:
        """The size of the file."""
        return self._file.path.stat().st_size

    def weight(self, name: str) -> npt.NDArray[np.float32]:
        """The matrix `name`, [out, in], exactly, as a new fp32 array."""
        return int4.dequantize(self._file.array(f"{name}.qweight"), self._file.array(f"{name}.weight_scale"))

    def verify(self) -> bool | None:
        """Whether every byte is as it was written; None if the file has no hashes."""
        return self._file.verify()

    def close(self) -> None:
        self._file.close()

    def _read_shape(self, config: ModelConfig) -> DraftShape:
        width, shortlist = self._length("gate_proj.weight_scale"), self._length(SHORTLIST)
        return DraftShape(config.hidden_size, width, shortlist, self._read_layers(config))

    def _length(self, name: str) -> int:
        info = self._file.tensors.get(name)
        if info is None or not info.shape or not 0 < info.shape[0] <= _LARGEST or info.shape[0] % GROUP_SIZE:
            raise CheckpointError(
                f"{self._file.path}: {name} is missing, or its length is no multiple of {GROUP_SIZE} up to {_LARGEST}"
            )
        return info.shape[0]

    def _read_layers(self, config: ModelConfig) -> tuple[int, ...]:
        info, count = self._file.tensors.get(LAYERS), config.num_hidden_layers
        if info is None or info.dtype != "I32" or len(info.shape) != 1:
            raise CheckpointError(f"{self._file.path}: layers is missing, or no list of whole numbers")
        layers = tuple(self._file.array(LAYERS)[: count + 1].tolist())
        if not all(0 <= layer < count for layer in layers) or list(layers) != sorted(set(layers)):
            raise CheckpointError(f"{self._file.path}: layers does not hold ascending numbers of layers below {count}")
        return layers


def open_draft(folder: Path, config: ModelConfig) -> DraftFile | None:
    """The draft head of the model in `folder`; None if it has none.

    CheckpointError if it is damaged or does not fit.
    """
    path = folder / DRAFT
    return DraftFile(path, config) if path.exists() else None


def copy_draft(source: Path, target: Path, config: ModelConfig) -> None:
    """Copies the draft head of the model in `source`, if it has one, into the folder `target`.

    Errors as `open_draft`.
    """
    if (draft := open_draft(source, config)) is not None:
        draft.close()
        shutil.copyfile(source / DRAFT, target / DRAFT)
