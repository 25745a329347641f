"""The tensors of a checkpoint of transformers or MLX by the names of its weights: floats, or INT4 in words of eight.

compressed-tensors keeps X.weight as X.weight_packed, X.weight_scale and X.weight_shape; MLX keeps it as X.weight,
X.scales and X.biases, and the experts of a layer in one. Legend: E experts, O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from mobilemoe.checkpoint import SafetensorsFile, int4
from mobilemoe.checkpoint.container import Array, shorten
from mobilemoe.config import GROUP_SIZE
from mobilemoe.errors import CheckpointError
from mobilemoe.export.stock_folder import VALUES_IN_WORD, from_offset_words

Floats: TypeAlias = npt.NDArray[np.float32]
Packing: TypeAlias = Literal["compressed-tensors", "mlx"]
FLOATS = ("BF16", "F16", "F32")
_SUFFIXES: dict[Packing, tuple[str, str, str, str]] = {  # the weight's own, of words, of scales, and of what else
    "compressed-tensors": (".weight", ".weight_packed", ".weight_scale", ".weight_shape"),
    "mlx": (".weight", ".weight", ".scales", ".biases"),
}
_STACKS = (".mlp.switch_mlp.", ".mlp.experts.")  # of experts, in MLX-LM's glm4_moe and dots1


@dataclass(frozen=True)
class _Packed:
    """Names of the tensors of a packed matrix, and which of a stack of them it is."""

    words: str
    scales: str
    expert: int | None = None


class StoredTensors:
    """The weights in `files` by name, floats or INT4; CheckpointError names what is packed in another way."""

    def __init__(self, files: Iterable[SafetensorsFile], packing: Packing | None) -> None:
        self.packing = packing
        self._where = {name: file for file in files for name in file.tensors}
        self._packed: dict[str, _Packed] = {}
        self.names = set(self._where)
        if packing is not None:
            for name in self._where:
                if name.endswith(scales := _SUFFIXES[packing][2]):
                    self._add_packed(name.removesuffix(scales), packing)

    def path(self, name: str) -> Path:
        """The file that holds the weight."""
        return self._where[self._packed[name].words if name in self._packed else name].path

    def is_packed(self, name: str) -> bool:
        """Whether the weight is INT4 here."""
        return name in self._packed

    def dtype(self, name: str) -> str:
        """The type of a weight, "INT4" if it is packed."""
        return "INT4" if name in self._packed else self._where[name].tensors[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the weight, unpacked."""
        if name not in self._packed:
            return self._where[name].tensors[name].shape
        outputs, words = self._array(self._packed[name].words).shape[-2:]
        return outputs, words * VALUES_IN_WORD

    def floats(self, name: str) -> Floats:
        """The weight in fp32, exactly."""
        if name in self._packed:
            return int4.dequantize(*self.int4(name))
        return int4.to_float32(self._array(name), self.dtype(name))

    def int4(self, name: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16]]:
        """Nibbles [O, I/2] and scales [O, I/32] of a packed weight; CheckpointError if a scale is no fp16 number."""
        packed = self._packed[name]
        words, scales = self._array(packed.words), self._array(packed.scales)
        if packed.expert is not None:
            words, scales = words[packed.expert], scales[packed.expert]
        exact = int4.to_float32(scales, self._where[packed.scales].tensors[packed.scales].dtype)
        with np.errstate(over="ignore"):
            held = exact.astype(np.float16)
        if not np.array_equal(held, exact):
            raise CheckpointError(
                f"{self.path(name)}: tensor {shorten(packed.scales)} holds scales that are no fp16 numbers"
            )
        return from_offset_words(words), held

    def _array(self, stored: str) -> Array:
        return self._where[stored].array(stored)

    def _add_packed(self, stem: str, packing: Packing) -> None:
        own, words, scales, other = (stem + suffix for suffix in _SUFFIXES[packing])
        for stored in (words, other):
            if stored not in self._where:
                raise CheckpointError(f"{self._where[scales].path} holds {shorten(scales)}, but no {shorten(stored)}")
        outputs, inputs = self._check(words, scales, stacks=packing == "mlx")
        self.names -= {words, scales, other}
        if packing == "compressed-tensors":
            if self._array(other).tolist() != [outputs, inputs]:
                raise CheckpointError(
                    f"{self._where[other].path}: tensor {shorten(other)} is not [{outputs}, {inputs}], "
                    f"the shape of {shorten(words)}"
                )
        else:
            self._check_biases(scales, other)
        shape = self._array(words).shape
        stack = next((part for part in _STACKS if part in own), None)
        if len(shape) == 2:
            self._packed[own] = _Packed(words, scales)
            self.names.add(own)
        elif stack is None:
            raise CheckpointError(f"{self._where[words].path}: tensor {shorten(words)} is {list(shape)}, no matrix")
        else:
            experts = {own.replace(stack, f".mlp.experts.{at}."): _Packed(words, scales, at) for at in range(shape[0])}
            self._packed |= experts
            self.names |= experts.keys()

    def _check(self, words: str, scales: str, *, stacks: bool) -> tuple[int, int]:
        """The outputs and inputs of a packed matrix, or of each in a stack; CheckpointError if its parts do not fit."""
        info, grouped = (self._where[stored].tensors[stored] for stored in (words, scales))
        fits = info.dtype in ("I32", "U32") and len(info.shape) in ((2, 3) if stacks else (2,))
        fits = fits and 0 not in info.shape  # an empty stack may claim any number of experts
        if fits:
            *outer, width = info.shape
            fits = grouped.dtype in FLOATS and grouped.shape == (*outer, width * VALUES_IN_WORD // GROUP_SIZE)
            fits = fits and width * VALUES_IN_WORD % GROUP_SIZE == 0
        if not fits:
            raise CheckpointError(
                f"{self._where[words].path}: {shorten(words)} is {info.dtype} {list(info.shape)} and {shorten(scales)} "
                f"{grouped.dtype} {list(grouped.shape)}, which is not 4 bits in groups of {GROUP_SIZE}"
            )
        return info.shape[-2], info.shape[-1] * VALUES_IN_WORD

    def _check_biases(self, scales: str, biases: str) -> None:
        """CheckpointError unless each bias is -8 scales, as only then zero is one of the values."""
        s, b = self.floats(scales), self.floats(biases)
        if s.shape != b.shape or not np.array_equal(b, -8 * s):
            raise CheckpointError(
                f"{self._where[biases].path}: {shorten(biases)} is not -8 times {shorten(scales)}: "
                "only symmetric INT4 is read"
            )
