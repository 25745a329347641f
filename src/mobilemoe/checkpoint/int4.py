"""INT4 in groups of 32 (spec 3.1 and the QAT rounding of section 5), and bfloat16, which numpy lacks.

A group is 32 neighbours along the last axis. value = q * scale, q in -8..7 in two's complement, scale fp16; two
nibbles share a byte, the even index in the low one. Legend: E experts, D hidden, F expert width, N grouped axis.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mobilemoe.checkpoint.container import Array
from mobilemoe.config import GROUP_SIZE, GroupAxis
from mobilemoe.errors import CheckpointError

_BLOCK = 2**22  # weights converted at once, so that a large matrix needs no large temporary arrays


def pack(q: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Packs integers in -8..7 [..., N] into bytes [..., N/2]."""
    nibbles = q.view(np.uint8)
    packed: npt.NDArray[np.uint8] = nibbles[..., 1::2] << np.uint8(4)
    packed |= nibbles[..., 0::2] & np.uint8(0xF)
    return packed


def unpack(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    """Unpacks bytes [..., N/2] into integers in -8..7 [..., N]."""
    q = np.empty((*packed.shape, 2), np.int8)
    q[..., 0] = (packed << 4).view(np.int8) >> 4  # shifting a signed number right keeps its sign
    q[..., 1] = packed.view(np.int8) >> 4
    return q.reshape(*packed.shape[:-1], 2 * packed.shape[-1])


def scales(w: npt.NDArray[np.float32], name: str = "the weight") -> npt.NDArray[np.float16]:
    """fp16 scales [..., N/32] of weights [..., N]: amax / 7.5 of each group.

    CheckpointError names `name` if N is not a multiple of 32, or if a group is not finite or too large for fp16.
    """
    if w.shape[-1] % GROUP_SIZE:
        raise CheckpointError(f"{name} has {w.shape[-1]} columns, but INT4 needs a multiple of {GROUP_SIZE}")
    groups = w.reshape(*w.shape[:-1], w.shape[-1] // GROUP_SIZE, GROUP_SIZE)
    with np.errstate(over="ignore", invalid="ignore"):
        amax = np.maximum(groups.max(axis=-1), -groups.min(axis=-1))
        scale: npt.NDArray[np.float16] = (amax / np.float32(7.5)).astype(np.float16)
    if not np.isfinite(scale).all():
        raise CheckpointError(f"{name} holds weights that are not finite or exceed the range of an fp16 scale")
    return scale


def quantize(
    w: npt.NDArray[np.float32], name: str = "the weight"
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16]]:
    """Weights [..., N] -> nibbles [..., N/2] and scales [..., N/32]; errors as `scales`.

    q = w / scale rounded to nearest, ties to even, clamped to -8..7, with the scale that is stored (already rounded
    to fp16). A group of zeros, or one too small for fp16, becomes zeros under a scale of zero.
    """
    columns = w.shape[-1]
    scale = scales(w, name)
    packed = np.empty((*w.shape[:-1], columns // 2), np.uint8)
    rows, row_packed = w.reshape(-1, columns), packed.reshape(-1, columns // 2)
    row_scales = scale.reshape(-1, columns // GROUP_SIZE)
    step = max(1, _BLOCK // columns)
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        divisor = row_scales[block].astype(np.float32)
        divisor[divisor == 0] = np.inf
        q = rows[block].reshape(-1, columns // GROUP_SIZE, GROUP_SIZE) / divisor[..., None]
        np.clip(np.rint(q, out=q), -8, 7, out=q)
        row_packed[block] = pack(q.astype(np.int8).reshape(-1, columns))
    return packed, scale


def dequantize(packed: npt.NDArray[np.uint8], scale: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """Nibbles [..., N/2] and scales [..., N/32] -> weights [..., N], exactly: 4 bits times 11 fit fp32's 24."""
    columns = 2 * packed.shape[-1]
    w = np.empty((*packed.shape[:-1], columns), np.float32)
    rows, row_packed = w.reshape(-1, columns), packed.reshape(-1, columns // 2)
    row_scales = scale.reshape(-1, columns // GROUP_SIZE)
    step = max(1, _BLOCK // max(1, columns))
    with np.errstate(invalid="ignore"):  # a file may hold infinite scales; 0 * inf is then nan, as its bytes say
        for start in range(0, len(rows), step):
            block = slice(start, start + step)
            q = unpack(row_packed[block]).reshape(-1, columns // GROUP_SIZE, GROUP_SIZE)
            out = rows[block].reshape(-1, columns // GROUP_SIZE, GROUP_SIZE)
            np.multiply(q, row_scales[block].astype(np.float32)[..., None], out=out)
    return w


def arrange_experts(w_EIO: npt.NDArray[np.float32], axis: GroupAxis) -> npt.NDArray[np.float32]:
    """Logical expert weights [E, in, out] with the grouped axis last: unchanged for "out", [E, out, in] for "in"."""
    return w_EIO if axis == "out" else np.ascontiguousarray(w_EIO.swapaxes(1, 2))


def dequantize_experts(
    packed: npt.NDArray[np.uint8], scale: npt.NDArray[np.float16], axis: GroupAxis
) -> npt.NDArray[np.float32]:
    """Stored expert weights of either axis -> logical [E, in, out]."""
    if axis == "out":
        return dequantize(packed, scale)
    experts, outputs, half = packed.shape
    w_EIO = np.empty((experts, 2 * half, outputs), np.float32)
    for expert in range(experts):
        w_EIO[expert] = dequantize(packed[expert], scale[expert]).T
    return w_EIO


def to_bf16(w: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """fp32 -> the bits of the nearest bfloat16, ties to even; nan stays nan."""
    bits = np.ascontiguousarray(w, np.float32).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    if (nan := np.isnan(w)).any():  # adding would carry a nan over into zero
        rounded[nan] = (bits[nan] >> 16).astype(np.uint16) | 0x40
    return rounded


def from_bf16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """The bits of bfloat16 -> fp32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_float32(array: Array, dtype: str) -> npt.NDArray[np.float32]:
    """A stored BF16, F16 or F32 tensor -> a new fp32 array, exactly."""
    return from_bf16(array) if dtype == "BF16" else array.astype(np.float32)
