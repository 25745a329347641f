"""Puts any number of pieces into a random order: they are sorted by random keys, in buckets on disk."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mobilemoe.data.sources import Encoded

BUFFER_BYTES = 2**26  # in memory, before they are appended to the buckets
BUCKET_BYTES = 2**28  # approximate size of a bucket, which is sorted in memory
_HEAD = struct.Struct("<QIB")  # key, number of ids, whether it is a conversation


class Shuffler:
    """Collects pieces and returns them in the order of 64-bit keys that are drawn from `seed`.

    The order depends on the seed only; `size`, the expected number of bytes, sets the number of buckets. The file
    `folder`/NUMBER of a bucket holds for each piece a header, its ids and, for a conversation, a byte per token that
    says whether it is learnt. Pieces that fit the buffer are never written.
    """

    def __init__(self, folder: Path, seed: int, ids_type: DTypeLike, size: int) -> None:
        self._folder = folder
        self._dice = np.random.PCG64(seed)
        self._ids_type = np.dtype(ids_type)
        self._buffers = [bytearray() for _ in range(1 + size // BUCKET_BYTES)]
        self._buffered = 0

    def add(self, piece: Encoded) -> None:
        key = int(self._dice.random_raw())
        taught = b"" if piece.taught_N is None else piece.taught_N.tobytes()
        record = _HEAD.pack(key, len(piece.ids_N), bool(taught)) + piece.ids_N.astype(self._ids_type).tobytes() + taught
        self._buffers[key * len(self._buffers) >> 64] += record
        self._buffered += len(record)
        if self._buffered >= BUFFER_BYTES:
            for number, buffer in enumerate(self._buffers):
                with (self._folder / str(number)).open("ab") as file:
                    file.write(buffer)
                buffer.clear()
            self._buffered = 0

    def drain(self) -> Iterator[Encoded]:
        """Yields every piece once; the files of the buckets are removed as they are read."""
        for number, buffer in enumerate(self._buffers):
            path = self._folder / str(number)
            data = bytes(buffer)
            if path.exists():
                data = path.read_bytes() + data
                path.unlink()
            buffer.clear()
            pieces = list(self._parse(data))
            pieces.sort(key=lambda entry: entry[0])
            for _, piece in pieces:
                yield piece

    def _parse(self, data: bytes) -> Iterator[tuple[int, Encoded]]:
        start = 0
        while start < len(data):
            key, count, is_chat = _HEAD.unpack_from(data, start)
            start += _HEAD.size
            ids_N: Any = np.frombuffer(data, self._ids_type, count, start)
            start += ids_N.nbytes
            yield key, Encoded(ids_N, np.frombuffer(data, np.bool_, count, start) if is_chat else None)
            start += count if is_chat else 0
