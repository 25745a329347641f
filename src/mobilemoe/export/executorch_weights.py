"""INT4 weights as ExecuTorch keeps them, in NumPy: for its MoE operator, for XNNPACK, for its embedding operator.

All three want 4-bit values in groups of 32 along the input. Legend: E experts, O outputs, I inputs, G = I / 32 groups,
V vocabulary, D hidden.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mobilemoe.checkpoint import Checkpoint, Differences, int4
from mobilemoe.config import GROUP_SIZE
from mobilemoe.errors import CheckpointError
from mobilemoe.export.stock import Floats, output_rows

# The operator's "universal" layout: magic, version, bits, zero points, bias, rows and columns of a tile, its halves.
_HEADER = np.array([6712, 1, 4, 0, 0, 8, 16, 2, *[0] * 8], "<i4").view(np.uint8)
_TILE_ROWS, _TILE_COLUMNS, _HALVES = 8, 16, 2


class Grouped(NamedTuple):
    """A matrix or a stack of them: value = q * scale, q in -8..7."""

    q: npt.NDArray[np.int8]  # [..., O, I]
    scales: Floats  # [..., O, G]

    def values(self) -> Floats:
        """What it stands for, [..., O, I]."""
        groups = self.q.reshape(*self.scales.shape, GROUP_SIZE) * self.scales[..., None]
        return groups.reshape(self.q.shape)


class Weights:
    """A checkpoint's weights as ExecuTorch gets them, and how far they are from the checkpoint's (`found`).

    The rows of q and k have the order of `export.stock`. CheckpointError where a weight cannot be exported.
    """

    def __init__(self, source: Checkpoint) -> None:
        self.source, self.found = source, Differences()

    def floats(self, name: str) -> Floats:
        """A norm's weight, a router or its bias, in fp32."""
        w = self.source.weight(name)
        if not np.isfinite(w).all():
            raise CheckpointError(f"{name} holds NaN or infinity, with which no model can compute")
        self.found.add(self.source.weights[name].kind, w, w)
        return np.ascontiguousarray(w[output_rows(self.source.config, name)])

    def linear(self, name: str) -> Grouped:
        """A matrix for XNNPACK, which keeps scales in bfloat16; a tied head is made of the embedding."""
        tied = name == "lm_head.weight" and name not in self.source.weights
        stored = "model.embed_tokens.weight" if tied else name
        matrix = grouped(self.source, stored)
        matrix = Grouped(matrix.q, int4.from_bf16(int4.to_bf16(matrix.scales)))
        self.found.add("head" if tied else self.source.weights[name].kind, self.source.weight(stored), matrix.values())
        rows = output_rows(self.source.config, stored)
        return Grouped(np.ascontiguousarray(matrix.q[rows]), np.ascontiguousarray(matrix.scales[rows]))

    def embedding(self) -> Grouped:
        """The embedding; its scales fit fp16."""
        name = "model.embed_tokens.weight"
        matrix = grouped(self.source, name)
        self.found.add("embedding", self.source.weight(name), matrix.values())
        return matrix

    def experts(self, name: str) -> npt.NDArray[np.uint8]:
        """A stack of experts, packed."""
        matrices = grouped(self.source, name)
        for w_IO, q_OI, scales_OG in zip(self.source.weight(name), *matrices, strict=True):
            self.found.add("routed", w_IO.T, Grouped(q_OI, scales_OG).values())
        return pack_experts(matrices)


def grouped(source: Checkpoint, name: str) -> Grouped:
    """The weight of canonical `name`, grouped along its inputs: as the file has it if it lies so, else rounded anew.

    A group whose scale is zero becomes zeros under a scale of one, since XNNPACK refuses zero. CheckpointError for a
    scale that is negative or not finite.
    """
    weight = source.weights[name]
    if weight.lies_along_inputs(source.config.expert_group_axis):
        nibbles, fp16 = (source.array(stored) for stored in weight.int4_names)
    else:
        w = source.weight(name)
        nibbles, fp16 = int4.quantize(np.ascontiguousarray(w.swapaxes(1, 2)) if w.ndim == 3 else w, name)
    q, scales = int4.unpack(nibbles), fp16.astype(np.float32)
    if not np.isfinite(scales).all() or (scales < 0).any():
        raise CheckpointError(f"{name} has scales that are negative or not finite, which ExecuTorch cannot run")
    empty = scales == 0
    if empty.any():
        scales[empty] = 1
        q.reshape(*empty.shape, GROUP_SIZE)[empty] = 0
    return Grouped(q, scales)


def pack_experts(matrices: Grouped) -> npt.NDArray[np.uint8]:
    """The bytes of each expert, [E, bytes], for `llama::quantized_moe_ffn`: 6 bits a weight and a header of 64 bytes.

    Outputs come in blocks of 8, each with its groups in turn. A group is two tiles of 8 x 16 values plus 8 in nibbles,
    the left half of a tile before the right one; then 8 scales and 8 sums of the values, of 32 bits each.
    """
    experts, outputs, inputs = matrices.q.shape
    groups = inputs // GROUP_SIZE
    by_row = matrices.q.reshape(experts, outputs // _TILE_ROWS, _TILE_ROWS, groups, GROUP_SIZE)
    tiles = by_row.reshape(*by_row.shape[:-1], GROUP_SIZE // _TILE_COLUMNS, _HALVES, _TILE_COLUMNS // _HALVES)
    in_order = tiles.transpose(0, 1, 3, 4, 5, 2, 6)  # expert, block, group, tile, half, row, column
    runs = (in_order.reshape(experts, outputs // _TILE_ROWS, groups, -1, 2, 16) + 8).astype(np.uint8)
    nibbles = _pairs(runs[..., 0, :], runs[..., 1, :])
    sums = by_row.sum(-1, dtype=np.int32).swapaxes(2, 3)
    scales = matrices.scales.reshape(experts, -1, _TILE_ROWS, groups).swapaxes(2, 3)
    parts = [nibbles.reshape(*sums.shape[:3], -1), _bytes(scales.astype("<f4")), _bytes(sums.astype("<i4"))]
    body = np.concatenate(parts, axis=-1).reshape(experts, -1)
    return np.concatenate([np.broadcast_to(_HEADER, (experts, len(_HEADER))), body], axis=1)


def _pairs(low: npt.NDArray[np.uint8], high: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return low | (high << np.uint8(4))


def _bytes(values: npt.NDArray[np.float32] | npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(values).view(np.uint8)


def pack_embedding(matrix: Grouped) -> npt.NDArray[np.uint8]:
    """The values plus 8, [V, D/2], for `embedding_4bit`: the even index of a pair in the high nibble."""
    q = (matrix.q + 8).astype(np.uint8)
    return _pairs(q[:, 1::2], q[:, 0::2])
