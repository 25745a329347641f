"""What pruning a model gave: the experts that stay, the use that chose them, and the scores before and after."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobilemoe.evaluate.compare.bits_per_byte import Score
from mobilemoe.prune.choice import Ints
from mobilemoe.prune.use import Floats, Use


@dataclass(frozen=True)
class Measured:
    """A model before or after: the bytes of its weight files, and its scores by the name of the text."""

    bytes: int
    scores: dict[str, Score]

    def as_json(self) -> dict[str, Any]:
        return {"bytes": self.bytes, "bits_per_byte": {name: each.bits_per_byte for name, each in self.scores.items()}}


@dataclass(frozen=True)
class Pruned:
    """The result of `prune`: the experts kept_LN of each layer, the use that chose them, and what it cost."""

    folder: Path
    kept_LN: Ints
    use: Use
    before: Measured
    after: Measured

    @property
    def share_L(self) -> Floats:
        """The share of all routing weight of the text that went to the experts which stay, by layer."""
        kept_LN = np.take_along_axis(self.use.weight_LE, self.kept_LN, axis=1)
        share_L: Floats = kept_LN.sum(axis=1) / self.use.weight_LE.sum(axis=1)
        return share_L

    def as_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "experts": self.kept_LN.shape[1],
            "kept": self.kept_LN.tolist(),
            "tokens": self.use.tokens,
            "share_of_weight": self.share_L.tolist(),
            "measured_bytes": {name: score.bytes for name, score in self.before.scores.items()},
            "before": self.before.as_json(),
            "after": self.after.as_json(),
        }
