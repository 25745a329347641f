"""A GGUF file as it lies on disk: its keys, and its tensors as views of the file.

Every claim is checked against the file's size before memory is taken for it. The gguf package's reader does not do
that, and reports damage by whatever NumPy raises.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from mobilemoe.checkpoint.container import shorten
from mobilemoe.config import GROUP_SIZE
from mobilemoe.errors import CheckpointError
from mobilemoe.export.gguf_blocks import Type, decode
from mobilemoe.files import open_regular

_MAX_HEADER_BYTES = 2**28
_MAX_KEYS, _MAX_TENSORS, _MAX_ENTRIES, _MAX_RANK = 2**16, 2**20, 2**24, 4
_DEFAULT_ALIGNMENT = 32
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FLOAT32, _STRING, _ARRAY = 6, 8, 9  # of the kinds of values
# The format's number of each type that is read, its name, values and bytes of a block, and how NumPy sees it.
_TYPES: dict[int, tuple[str, int, int, str]] = {
    0: ("f32", 1, 4, "<f4"),
    1: ("f16", 1, 2, "<f2"),
    2: ("q4_0", GROUP_SIZE, 18, "u1"),
    8: ("q8_0", GROUP_SIZE, 34, "u1"),
    30: ("bf16", 1, 2, "<u2"),
}


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: type, shape in NumPy's order, and the shape, dtype and first byte of what is kept."""

    type: str
    shape: tuple[int, ...]
    kept: tuple[int, ...]
    dtype: str
    start: int


class GgufFile:
    """A GGUF file, checked and mapped read-only; CheckpointError names the file, and the key or tensor at fault."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_regular(path, CheckpointError) as handle:
                size = os.fstat(handle.fileno()).st_size
                if handle.read(4) != b"GGUF":
                    raise CheckpointError(f"{path} is no GGUF file: it does not begin with GGUF")
                self._map = mmap.mmap(handle.fileno(), size, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise CheckpointError(f"{path} does not exist") from None
        except (OSError, ValueError) as fault:
            raise CheckpointError(f"{path} cannot be read: {fault}") from None
        header = _Header(path, self._map)
        self.keys = header.read_keys()
        self.tensors = header.read_tensors(self.keys.get("general.alignment", _DEFAULT_ALIGNMENT))

    def array(self, name: str) -> npt.NDArray[Any]:
        """The tensor as it is kept, without a copy: fp32, fp16, BF16 as uint16, or blocks as bytes [..., bytes]."""
        stored = self.tensors[name]
        return np.ndarray(stored.kept, stored.dtype, self._map, stored.start)

    def floats(self, name: str) -> npt.NDArray[np.float32]:
        """The tensor as a new fp32 array, exactly; CheckpointError if a value is not finite."""
        type, data = self.tensors[name].type, self.array(name)
        w = data.astype(np.float32) if type in ("f32", "f16") else decode(data, cast(Type, type))
        if not np.isfinite(w).all():
            raise CheckpointError(f"{self.path}: tensor {name} holds NaN or infinity, with which no model can compute")
        return w


class _Header:
    """Reads a header from its first byte to its last."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._at, self._where = path, data, 4, "its header"
        version = self._number("I")
        if version not in (2, 3):
            raise CheckpointError(f"{path} is a GGUF file of version {version}, but only 2 and 3 are read")
        self._tensors, self._keys = self._number("Q"), self._number("Q")
        for count, most, what in ((self._tensors, _MAX_TENSORS, "tensors"), (self._keys, _MAX_KEYS, "keys")):
            if count > most:
                raise CheckpointError(f"{path} is damaged: it claims {count} {what}, more than {most}")

    def read_keys(self) -> dict[str, Any]:
        """Every key with its value: a number, a bool, a text, or a list of one of them."""
        keys: dict[str, Any] = {}
        for _ in range(self._keys):
            self._where = "a key's name"
            name = self._text()
            self._where = f"key {shorten(name)}"
            if name in keys:
                raise self._damaged("stands in it twice")
            keys[name] = self._value(self._number("I"))
        return keys

    def read_tensors(self, alignment: Any) -> dict[str, Stored]:
        """Every tensor by its name, after the keys have been read."""
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            raise CheckpointError(f"{self._path}: general.alignment is {alignment!r}, not a power of two")
        found: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(self._tensors):
            self._where = "a tensor's name"
            name = self._text()
            self._where = f"tensor {shorten(name)}"
            if name in found:
                raise self._damaged("stands in it twice")
            rank = self._number("I")
            if rank > _MAX_RANK:
                raise self._damaged(f"claims {rank} dimensions")
            shape = tuple(self._number("Q") for _ in range(rank))[::-1]
            found[name] = (shape, self._number("I"), self._number("Q"))
        payload = -(-self._at // alignment) * alignment
        return {name: self._stored(name, *entry, payload) for name, entry in found.items()}

    def _stored(self, name: str, shape: tuple[int, ...], kind: int, offset: int, payload: int) -> Stored:
        self._where = f"tensor {shorten(name)}"
        if kind not in _TYPES:
            known = ", ".join(type for type, *_ in _TYPES.values())
            raise CheckpointError(
                f"{self._path}: {self._where} has GGUF's type number {kind}, but only {known} can be read"
            )
        type, values, block, dtype = _TYPES[kind]
        if not shape or 0 in shape or shape[-1] % values:
            raise self._damaged(f"has the shape {list(shape)}, which {type} cannot have")
        start, size = payload + offset, prod(shape) // values * block
        if start + size > len(self._data):
            raise self._damaged(f"would end at byte {start + size}, but the file has {len(self._data)}")
        kept = shape if values == 1 else (*shape[:-1], shape[-1] // values * block)
        return Stored(type, shape, kept, dtype, start)

    def _take(self, count: int) -> bytes:
        if self._at + count > len(self._data):
            raise self._damaged("would end beyond the file")
        if self._at + count > _MAX_HEADER_BYTES:
            raise self._damaged(f"would end beyond the {_MAX_HEADER_BYTES} bytes that a header may have here")
        piece = self._data[self._at : self._at + count]
        self._at += count
        return piece

    def _number(self, code: str) -> Any:
        (value,) = struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}")))
        return value

    def _text(self) -> str:
        try:
            return self._take(self._number("Q")).decode()
        except UnicodeDecodeError:
            raise self._damaged("is not UTF-8 text") from None

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind in _SCALARS:
            return self._scalars(kind, 1)[0]
        if kind != _ARRAY:
            raise self._damaged(f"has a value of the unknown kind {kind}")
        kind, count = self._number("I"), self._number("Q")
        if count > _MAX_ENTRIES:
            raise self._damaged(f"claims a list of {count} entries, more than {_MAX_ENTRIES}")
        if kind == _STRING:
            return [self._text() for _ in range(count)]
        if kind in _SCALARS:
            return self._scalars(kind, count)
        raise self._damaged(f"has a list of the kind {kind}, which is not read here")

    def _scalars(self, kind: int, count: int) -> list[Any]:
        code = _SCALARS[kind]
        values = list(struct.unpack(f"<{count}{code}", self._take(count * struct.calcsize(f"<{code}"))))
        # The shortest decimal that means the same fp32: 1e-05, and not 9.999999747378752e-06.
        return [float(str(np.float32(value))) for value in values] if kind == _FLOAT32 else values

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._path} is damaged: {self._where} {what}; download or write it again")
