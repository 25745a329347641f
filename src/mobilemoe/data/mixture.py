"""Mixes several sources in fixed proportions of tokens, without random numbers.

The next piece comes from the source that is furthest below its share of the tokens so far. So every source stays
within about one piece of its share, from the first batches on.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mobilemoe.data.sources import SPLITS, HubSource, LocalSource, Source, Split
from mobilemoe.data.stream import PieceStream, StreamConfig
from mobilemoe.data.tokens import TokenSource
from mobilemoe.errors import DataError

if TYPE_CHECKING:
    from mobilemoe.data.config import DataConfig, SourceConfig


class Mixture:
    """Streams by name, with weights; `tokens` counts what has been taken of each.

    The caller takes a piece of the source that `pick` names, and reports with `record` how many tokens it had. With
    `assistant_only`, only the assistant's part of a conversation is learnt. Positions in one mixture are valid in
    another one if both have the same `identity`.
    """

    def __init__(
        self, streams: Mapping[str, PieceStream], weights: Mapping[str, float], *, assistant_only: bool = False
    ) -> None:
        total = sum(weights[name] for name in streams)
        self.streams = dict(streams)
        self.shares = {name: weights[name] / total for name in streams}
        self.tokens = dict.fromkeys(streams, 0)
        self.assistant_only = assistant_only

    @property
    def identity(self) -> dict[str, object]:
        """Seed, split, shares, shards and what is taught, as JSON values."""
        described: dict[str, object] = {"train_on": "assistant" if self.assistant_only else "all"}
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
        """The source that is furthest below its share; the first one of equals."""
        total = sum(self.tokens.values())
        return max(self.shares, key=lambda name: self.shares[name] * total - self.tokens[name])

    def record(self, name: str, tokens: int) -> None:
        """Counts `tokens` taken of a source."""
        self.tokens[name] += tokens


def build_sources(config: DataConfig, root: Path | str) -> dict[str, Source]:
    """Opens every source of a recipe; a relative `config.path` starts at `root`. Raises DataError.

    The path may be a file if only one source is local: then the file is that source.
    """
    folder = Path(root) / config.path
    local = [source for source in config.mixture if source.files]
    if folder.is_file() and len(local) == 1:
        alone = local[0].model_copy(update={"files": glob.escape(folder.name)})
        return {
            source.name: open_source(alone if source is local[0] else source, folder.parent)
            for source in config.mixture
        }
    if local and not folder.is_dir():
        if folder.is_file():
            names = ", ".join(source.name for source in local)
            raise DataError(f"{folder} is one file, but the sources {names} need a folder: set path in [data] to that")
        missing = "is neither a file nor a folder" if os.path.lexists(folder) else "does not exist"
        raise DataError(f"the data folder {folder} {missing}: set path in the recipe's [data] table")
    return {source.name: open_source(source, folder) for source in config.mixture}


def open_source(config: SourceConfig, root: Path) -> Source:
    """The source that a recipe names; local patterns are looked up below `root`. Raises DataError."""
    if config.hub:
        return HubSource(config.hub, config.subset, config.hub_split, config.data_files, config.text_field)
    assert config.files  # the config's own rule: files or hub
    patterns = [config.files] if isinstance(config.files, str) else config.files
    if all(pattern.endswith(".npz") for pattern in patterns):
        return TokenSource(root, patterns)
    return LocalSource(root, patterns, config.text_field)


def refuse_tokens(sources: Mapping[str, Source]) -> None:
    """Raises DataError if one of the sources is prepared, for a caller that needs text."""
    for name, source in sources.items():
        if isinstance(source, TokenSource):
            raise DataError(f"source {name!r} is prepared, but text is needed here: name the files it was made from")


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
    weights = {source.name: source.weight for source in config.mixture}
    return Mixture(streams, weights, assistant_only=config.train_on == "assistant")
