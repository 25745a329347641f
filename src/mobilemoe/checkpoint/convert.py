"""Converts a checkpoint to another format, one tensor at a time, and reports the error that this adds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mobilemoe.checkpoint.container import Array
from mobilemoe.checkpoint.folder import Checkpoint, Floats
from mobilemoe.checkpoint.layout import stored_tensors, weights
from mobilemoe.checkpoint.writing import Format, encoder, stored_config, write_folder
from mobilemoe.config import GroupAxis
from mobilemoe.progress import each

_BLOCK = 2**22  # weights compared at once


@dataclass(frozen=True)
class KindError:
    """The largest absolute difference, and the root mean square of the difference relative to that of the source."""

    max_abs: float
    relative_rms: float


@dataclass(frozen=True)
class Report:
    """What a conversion changed: the error of each kind of weight (layout.Kind), measured on the written file."""

    kinds: dict[str, KindError]
    lossless: bool


def convert(src: Path | str, dst: Path | str, *, format: Format, group_axis: GroupAxis = "in") -> Report:
    """Writes the checkpoint `src` as the new folder `dst` in `format`, with the tokenizer files beside it.

    Tensors whose stored form does not change are copied byte for byte; INT4 stays as it is unless its experts change
    their axis. INT4 to BF16 is not lossless: nibble times fp16 scale has up to 15 significant bits, bfloat16 has 8.
    CheckpointError as for Checkpoint.open and save_checkpoint.
    """
    src, dst = Path(src), Path(dst)
    with Checkpoint.open(src) as source:
        config = stored_config(source.config, format, group_axis)
        encode = encoder(config, source.weight)
        copied = unchanged(source, config.expert_group_axis)

        def produce(stored: str) -> Array:
            return source.array(stored) if stored in copied else encode(stored)

        write_folder(dst, config, produce, beside=src)
        with Checkpoint.open(dst) as result:
            return compare(source.weight, result)


def compare(source: Callable[[str], Floats], result: Checkpoint) -> Report:
    """How far the weights of `result` are from those that `source` gives by canonical name."""
    found = Differences()
    for weight in each(result.weights.values(), "weights compared"):
        found.add(weight.kind, source(weight.name), result.weight(weight.name))
    return found.report()


class Differences:
    """Gathers by kind how far written weights are from their source's."""

    def __init__(self) -> None:
        self._worst: dict[str, float] = {}
        self._squares: dict[str, list[float]] = {}

    def add(self, kind: str, source: Floats, written: Floats) -> None:
        """Two weights, or parts of them, of one shape."""
        max_abs, error, power = _differences(source, written)
        self._worst[kind] = max(self._worst.get(kind, 0.0), max_abs)
        total = self._squares.setdefault(kind, [0.0, 0.0])
        total[0] += error
        total[1] += power

    def report(self) -> Report:
        """What was added so far."""
        kinds = {
            kind: KindError(self._worst[kind], (error / power) ** 0.5 if error else 0.0)
            for kind, (error, power) in self._squares.items()
        }
        return Report(kinds, lossless=not any(self._worst.values()))


def unchanged(source: Checkpoint, axis: GroupAxis | None) -> set[str]:
    """Stored names whose bytes can be copied. Shapes do not decide it: for S, both axes have the same shapes."""
    before = source.config.expert_group_axis
    names: set[str] = set()
    for weight in weights(source.config).values():
        regrouped = weight.storage == "experts" and axis != before
        if weight.is_quantizable and (regrouped or (axis is None) != (before is None)):
            continue
        for name, (dtype, _) in stored_tensors(weight, axis).items():
            if name in source.tensors and source.tensors[name].dtype == dtype:
                names.add(name)
    return names


def _differences(a: Floats, b: Floats) -> tuple[float, float, float]:
    """Largest |a - b|, sum of (a - b)^2 and sum of a^2; equal bits of infinity or nan count as no difference."""
    max_abs = error = power = 0.0
    a, b = a.reshape(-1), b.reshape(-1)
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, a.size, _BLOCK):
            x, y = a[start : start + _BLOCK], b[start : start + _BLOCK]
            power += float(np.dot(x, x))
            if np.array_equal(x, y):
                continue
            difference = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0, x - y)
            max_abs = float(np.maximum(max_abs, np.abs(difference).max()))
            error += float(np.dot(difference, difference))
    return max_abs, error, power
