"""The safetensors container: 8 bytes of header length, a JSON table of tensors, then their bytes, end to end.

Every claim in a header is checked against the file's size before it is used. Then the file is mapped into memory, so
that opening a model allocates nothing for its weights. numpy has no bfloat16: BF16 tensors are uint16 arrays here.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import re
import stat
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from mobilemoe.errors import CheckpointError
from mobilemoe.files import IS_LFS_POINTER, LFS_START, atomic_file
from mobilemoe.progress import each

Array: TypeAlias = npt.NDArray[Any]
Spec: TypeAlias = tuple[str, tuple[int, ...]]  # dtype, shape

MAX_HEADER_BYTES = 2**23  # some hundred thousand tensors; the native reader has the same limit
MAX_RANK = 32  # the least that any numpy supports
_PIECE = 2**24  # bytes hashed at once

# In ascending order, as in the reference implementation: tensors are sorted by falling rank, then by name, which
# keeps every tensor aligned to its own width.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
}
_RANK = {name: rank for rank, name in enumerate(DTYPES)}

_PAYLOAD_KEY, _HEADER_KEY = "sha256", "header_sha256"
_BLANK = "0" * 64  # the place of a digest that is not known yet


@dataclass(frozen=True)
class TensorInfo:
    """One row of the table; `start` and `end` are bytes from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class SafetensorsFile:
    """A safetensors file, checked and mapped read-only; CheckpointError names the file and what is wrong with it."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._map: mmap.mmap | None = None
        try:
            # Asked before opening: opening a pipe would wait for its writer.
            if not stat.S_ISREG(self.path.stat().st_mode):
                raise CheckpointError(f"{self.path} is not a file")
            with open(self.path, "rb") as handle:
                size = handle.seek(0, 2)
                handle.seek(0)
                if size < 8:
                    raise CheckpointError(f"{self.path} is {size} bytes, too short for a safetensors file")
                start = handle.read(8)
                if LFS_START.startswith(start):
                    raise CheckpointError(f"{self.path} {IS_LFS_POINTER}")
                length = int.from_bytes(start, "little")
                if length > min(size - 8, MAX_HEADER_BYTES):
                    raise CheckpointError(
                        f"{self.path} claims a header of {length} bytes, more than the file or the format allows: "
                        "download or write it again"
                    )
                header = handle.read(length)
                self._payload = 8 + length
                self.metadata, self.tensors = _parse_header(self.path, header, size)
                self._map = mmap.mmap(handle.fileno(), size, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise CheckpointError(f"{self.path} does not exist") from None
        except (OSError, ValueError) as fault:
            raise CheckpointError(f"{self.path} cannot be read: {fault}") from None

    def array(self, name: str) -> Array:
        """The tensor `name` as a read-only view of the file (BF16 as uint16); it stays valid after `close`."""
        info = self.tensors.get(name)
        if info is None:
            raise CheckpointError(f"{self.path} holds no tensor {shorten(name)}")
        return np.ndarray(info.shape, DTYPES[info.dtype], self._mapped(), info.start)

    def verify(self) -> bool | None:
        """Whether every byte is as `write_safetensors` wrote it; None if the file has no hashes.

        One hash covers the payload, another the header with its own digits blanked, so a change to either hash, or
        to the name under which one is kept, is found by the other.
        """
        payload_digest, header_digest = self.metadata.get(_PAYLOAD_KEY), self.metadata.get(_HEADER_KEY)
        if payload_digest is None and header_digest is None:
            return None
        if payload_digest is None or header_digest is None:
            return False
        mapped = self._mapped()
        header = mapped[: self._payload].replace(header_digest.encode("utf-8", "replace"), _BLANK.encode(), 1)
        if hashlib.sha256(header).hexdigest() != header_digest:
            return False
        payload = hashlib.sha256()
        with memoryview(mapped) as view:
            for start in range(self._payload, len(view), _PIECE):
                with view[start : start + _PIECE] as piece:
                    payload.update(piece)
        return payload.hexdigest() == payload_digest

    def close(self) -> None:
        """Closes the file; arrays that are still in use keep its mapping alive."""
        self._map = None  # not unmapped by force: numpy's views would not prevent it, and reading one would crash

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _mapped(self) -> mmap.mmap:
        if self._map is None:
            raise CheckpointError(f"{self.path} has been closed: open it again")
        return self._map


def write_safetensors(
    path: Path | str,
    specs: Mapping[str, Spec],
    produce: Callable[[str], Array],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes the tensors of `specs` atomically; `produce` is called for one at a time, in the file's order.

    BF16 tensors are produced as uint16. Adds "format": "pt" and the hashes that `verify` checks to `metadata`.
    CheckpointError if an array is not what its spec says; after any exception there is no file.
    """
    entries: dict[str, Any] = {
        "__metadata__": {"format": "pt", **(metadata or {}), _PAYLOAD_KEY: _BLANK, _HEADER_KEY: _BLANK}
    }
    names = sorted(specs, key=lambda name: (-_RANK[specs[name][0]], name))
    end = 0
    for name in names:
        dtype, shape = specs[name]
        start, end = end, end + payload_bytes(specs[name])
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}

    payload = hashlib.sha256()
    with atomic_file(path) as handle, ThreadPoolExecutor(1) as hashing:
        handle.write(_header(entries))
        for name in each(names, "tensors written"):
            dtype, shape = specs[name]
            array = np.asarray(produce(name), order="C")
            if array.dtype != DTYPES[dtype] or array.shape != shape:
                raise CheckpointError(
                    f"{path}: tensor {shorten(name)} was produced as {array.dtype} {list(array.shape)}, "
                    f"but its place is for {dtype} {list(shape)}"
                )
            data = array.reshape(-1).view(np.uint8).data
            hashed = hashing.submit(payload.update, data)  # which takes as long as writing
            handle.write(data)
            hashed.result()
        # The hashes are known only now. They are written into the places reserved for them, the header's own last.
        hashes = entries["__metadata__"]
        hashes[_PAYLOAD_KEY] = payload.hexdigest()
        hashes[_HEADER_KEY] = hashlib.sha256(_header(entries)).hexdigest()
        handle.seek(0)
        handle.write(_header(entries))


def payload_bytes(spec: Spec) -> int:
    """Bytes that a tensor of this dtype and shape takes."""
    dtype, shape = spec
    return math.prod(shape) * DTYPES[dtype].itemsize


def is_finite(array: Array, dtype: str) -> bool:
    """Whether a stored array holds neither NaN nor infinity."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE]
        if dtype == "BF16" and ((piece & 0x7F80) == 0x7F80).any():
            return False
        if dtype in ("F16", "F32", "F64") and not np.isfinite(piece).all():
            return False
    return True


def shorten(name: str) -> str:
    """A name from a file, fit for a message: quoted, on one line, not too long."""
    quoted = ascii(name)
    return quoted if len(quoted) <= 100 else f"{quoted[:96]}...'"


def _header(entries: Mapping[str, Any]) -> bytes:
    """Length and JSON, padded with spaces so that the payload begins at a multiple of 8."""
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _parse_header(path: Path, header: bytes, size: int) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """Metadata and table of a header, with every claim checked against the file's `size` in bytes."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name stands in it twice")
        return found

    try:
        # The format requires "{" first; json would also accept blanks.
        if not header.startswith(b"{"):
            raise ValueError("it does not begin with {")
        entries: dict[str, Any] = json.loads(header.decode("utf-8"), object_pairs_hook=unique)
    except RecursionError:
        raise CheckpointError(f"{path} has a damaged header: it is nested too deeply") from None
    except ValueError as fault:
        raise CheckpointError(f"{path} has a damaged header: {fault}") from None

    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path} has a damaged header: __metadata__ does not map names to text")
    start = 8 + len(header)
    tensors = {name: _parse_entry(path, name, entry, start) for name, entry in entries.items()}

    # In the order of their offsets, each tensor must begin where the last one ended: no holes, no overlaps.
    at = start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start != at:
            what = "overlaps the one before" if info.start < at else "leaves a hole before itself"
            raise CheckpointError(f"{path} has a damaged header: tensor {shorten(name)} {what}")
        at = info.end
    if at != size:
        raise CheckpointError(
            f"{path} is {size} bytes, but its tensors end at {at}: it is cut short or has bytes appended; "
            "download or write it again"
        )
    return metadata, tensors


def _parse_entry(path: Path, name: str, entry: Any, payload: int) -> TensorInfo:
    where = f"{path} has a damaged header: tensor {shorten(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if isinstance(dtype, str) and re.fullmatch(r"[A-Z]+\d+[A-Z0-9_]*", dtype) and dtype not in DTYPES:
        known = ", ".join(reversed(DTYPES))
        raise CheckpointError(
            f"{path}: tensor {shorten(name)} has the dtype {shorten(dtype)}, which is not supported; known are {known}"
        )
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{where} has the unknown dtype {shorten(str(dtype))}")
    # type() and not isinstance: true is an int to Python, but not a number of bytes.
    if not isinstance(shape, list) or not all(type(extent) is int and extent >= 0 for extent in shape):
        raise CheckpointError(f"{where} has a shape that is not a list of whole numbers")
    itemsize = DTYPES[dtype].itemsize
    # An empty tensor can claim huge other dimensions, which numpy cannot hold.
    if len(shape) > MAX_RANK or math.prod(extent or 1 for extent in shape) * itemsize >= 2**63:
        raise CheckpointError(f"{where} has an impossible shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(at) is int and at >= 0 for at in offsets):
        raise CheckpointError(f"{where} has data_offsets that are not two whole numbers")
    begin, end = offsets
    if end - begin != math.prod(shape) * itemsize:
        raise CheckpointError(f"{where} has data_offsets that do not fit its shape and dtype")
    return TensorInfo(dtype, tuple(shape), payload + begin, payload + end)
