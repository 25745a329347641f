"""Several sources in fixed proportions of tokens, without a random number.

The next piece comes from the source that lags most behind its share of the tokens so far. No source is ever further
from its share than about one piece, so the proportions hold from the first batches on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mobilemoe.data.sources import SPLITS, Source, Split, open_source
from mobilemoe.data.stream import PieceStream, StreamConfig
from mobilemoe.errors import DataError

if TYPE_CHECKING:
    from mobilemoe.data.config import DataConfig


class Mixture:
    """Streams by name, with weights; `tokens` counts what has been taken of each.

    The caller takes a piece of the source that `pick` names and says with `record` how many tokens it was: only a
    tokenizer knows. `identity` is what two mixtures must share for a position in one to mean the same in the other.
    """

    def __init__(self, streams: Mapping[str, PieceStream], weights: Mapping[str, float]) -> None:
        total = sum(weights[name] for name in streams)
        self.streams = dict(streams)
        self.shares = {name: weights[name] / total for name in streams}
        self.tokens = dict.fromkeys(streams, 0)

    @property
    def identity(self) -> dict[str, object]:
        """Seed, split, shares and shards, as JSON values."""
        described: dict[str, object] = {}
        for name, stream in self.streams.items():
            config = stream.config
            described[f"source {name}"] = (
                f"{len(stream.source.shards)} shards ({stream.source.fingerprint}), share {self.shares[name]:.6g}"
            )
            described.update(
                seed=config.seed, split=config.split, holdout=config.holdout, piece_chars=config.piece_chars
            )
        return described

    def pick(self) -> str:
        """The source that lags most; the first of equals."""
        total = sum(self.tokens.values())
        return max(self.shares, key=lambda name: self.shares[name] * total - self.tokens[name])

    def record(self, name: str, tokens: int) -> None:
        """Counts `tokens` taken of a source."""
        self.tokens[name] += tokens


def build_sources(config: DataConfig, root: Path | str) -> dict[str, Source]:
    """Opens every source of a recipe; a relative `config.path` lies below `root`. Raises DataError."""
    folder = Path(root) / config.path
    if not folder.is_dir() and any(source.files for source in config.mixture):
        raise DataError(f"the data folder {folder} does not exist: set path in the recipe's [data] table")
    return {source.name: open_source(source, folder) for source in config.mixture}


def build_mixture(config: DataConfig, root: Path | str, split: Split = "train") -> Mixture:
    """The mixture of a recipe, at its beginning; a relative `config.path` lies below `root`.

    Raises DataError for a folder, pattern, dataset or split that is not there.
    """
    if split not in SPLITS:
        raise DataError(f"the split {split!r} is unknown: use one of {', '.join(SPLITS)}")
    streams = {}
    for name, source in build_sources(config, root).items():
        stream_config = StreamConfig(name, config.seed, split, config.holdout, config.piece_chars)
        streams[name] = PieceStream(source, stream_config)
    return Mixture(streams, {source.name: source.weight for source in config.mixture})
