"""Weights in the types of a GGUF file. Q4_0 has the same 4-bit values and fp16 scales as our INT4, in another order.

A block of Q4_0 is an fp16 scale and 16 bytes, for 32 neighbours: byte i holds value i in its low nibble and value
i + 16 in its high one, each with 8 added.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mobilemoe.checkpoint import int4
from mobilemoe.config import GROUP_SIZE

Type = Literal["q4_0", "q8_0", "bf16"]
TYPES: tuple[Type, ...] = ("q4_0", "q8_0", "bf16")
Bytes = npt.NDArray[np.uint8]
_HALF = GROUP_SIZE // 2


def q4_0(nibbles: Bytes, scales: npt.NDArray[np.float16]) -> Bytes:
    """Our INT4, nibbles [..., I/2] and scales [..., I/32], as blocks [..., I/32 * 18], bit for bit."""
    values = (int4.unpack(nibbles) + np.int8(8)).view(np.uint8)
    values = values.reshape(*scales.shape, GROUP_SIZE)
    packed = values[..., :_HALF] | (values[..., _HALF:] << np.uint8(4))
    blocks = np.concatenate([np.ascontiguousarray(scales)[..., None].view(np.uint8), packed], axis=-1)
    return blocks.reshape(*scales.shape[:-1], -1)


def from_q4_0(blocks: Bytes) -> tuple[Bytes, npt.NDArray[np.float16]]:
    """Blocks [..., I/32 * 18] as our nibbles [..., I/2] and scales [..., I/32], bit for bit."""
    each = blocks.reshape(*blocks.shape[:-1], -1, 2 + _HALF)
    scales = np.ascontiguousarray(each[..., :2]).view(np.float16)[..., 0]
    values = np.concatenate([each[..., 2:] & np.uint8(15), each[..., 2:] >> np.uint8(4)], axis=-1)
    q = (values.view(np.int8) - np.int8(8)).reshape(*scales.shape[:-1], -1)
    return int4.pack(q), scales


def encode(w: npt.NDArray[np.float32], type: Type, name: str) -> npt.NDArray[Any]:
    """fp32 weights [..., I] in `type`; CheckpointError names `name` where Q4_0 cannot hold them."""
    if type == "q4_0":
        return q4_0(*int4.quantize(w, name))
    if type == "bf16":
        return int4.to_bf16(w)
    from gguf import GGMLQuantizationType, quants

    blocks: Bytes = quants.quantize(w, GGMLQuantizationType.Q8_0)
    return blocks


def decode(data: npt.NDArray[Any], type: Type) -> npt.NDArray[np.float32]:
    """The weights that `data` stands for, exactly."""
    if type == "q4_0":
        return int4.dequantize(*from_q4_0(data))
    if type == "bf16":
        return int4.from_bf16(data.view(np.uint16))
    each = data.reshape(*data.shape[:-1], -1, 2 + GROUP_SIZE)  # Q8_0: an fp16 scale and 32 bytes
    scales = np.ascontiguousarray(each[..., :2]).view(np.float16).astype(np.float32)
    w: npt.NDArray[np.float32] = each[..., 2:].view(np.int8) * scales
    return w.reshape(*data.shape[:-1], -1)
