"""Writes a recipe's training text as token shards: tokenised once, and then read faster than a GPU trains."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mobilemoe.chat import ChatTemplate
from mobilemoe.data.encoding import Encoder
from mobilemoe.data.mixture import build_sources, refuse_tokens
from mobilemoe.data.shuffle import Shuffler
from mobilemoe.data.sources import Document, Encoded, Source, digest
from mobilemoe.data.stream import cut_document, split_documents
from mobilemoe.data.tokens import FORMAT_VERSION, INDEX_NAME, ids_type, write_shard
from mobilemoe.errors import DataError
from mobilemoe.files import atomic_folder, write_json
from mobilemoe.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mobilemoe.data.config import DataConfig

SHARD_TOKENS = 4_000_000  # about 6 MB packed; a shard is opened in a tenth of a second
BATCH_PIECES = 1024  # enough for every core that tokenises; the tokenizer needs some 100 bytes a token meanwhile
WRITERS = 8  # shards that are packed at a time


def prepare(
    config: DataConfig,
    root: Path | str,
    out: Path | str,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    *,
    on_progress: Callable[[str, int], None] | None = None,
) -> dict[str, Any]:
    """Writes the train split of each source of a recipe into the new folder `out`; returns what `prepared.json` says.

    The pieces are those that training on the text itself would see, all of a source shuffled by the recipe's seed: in
    shards NAME-00000.npz, ... (see `data.tokens`), with the assistant's runs marked, so that they serve either
    `train_on`. `prepared.json` holds the tokenizer's fingerprint, the chat template, the recipe's data table without
    its path, and by source the counts of documents, conversations, pieces and tokens, the documents of each licence,
    and the shards. `on_progress` is called with what is done, the source, and the tokens of it so far.
    Raises DataError if `out` exists, a source is empty or prepared already, or its name does not fit a file's.
    """
    encoder = Encoder(tokenizer, template)
    sources = build_sources(config, root)
    refuse_tokens(sources)
    for name in sources:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise DataError(f"the source {name!r} cannot name a file: use letters, digits, '.', '-' and '_'")
    with atomic_folder(out, DataError) as folder:
        written = {}
        for name, source in sources.items():
            written[name] = _prepare_source(name, source, config, encoder, tokenizer.vocab_size, folder, on_progress)
        index = {
            "version": FORMAT_VERSION,
            "tokenizer": encoder.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "template": template.source,
            "domains": list(sources),
            "data": config.model_dump(mode="json", exclude={"path"}),
            "sources": written,
        }
        write_json(folder / INDEX_NAME, index)
    return index


def _prepare_source(
    name: str,
    source: Source,
    config: DataConfig,
    encoder: Encoder,
    vocab_size: int,
    folder: Path,
    on_progress: Callable[[str, int], None] | None,
) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    licenses: Counter[str] = Counter()

    def documents() -> Iterator[Document]:
        for shard in range(len(source.shards)):
            for document in split_documents(source, shard, "train", config.holdout):
                licenses[document.license] += 1
                counts["conversations"] += document.messages is not None
                yield document

    pieces = (piece for document in documents() for piece in cut_document(document, config.piece_chars))
    seed = int(digest(f"{config.seed}/{name}/prepare"), 16)
    with TemporaryDirectory(dir=folder) as buckets:
        shuffler = Shuffler(Path(buckets), seed, ids_type(vocab_size), sum(source.sizes))
        while batch := list(islice(pieces, BATCH_PIECES)):
            for encoded in encoder.encode(batch):
                shuffler.add(encoded)
                counts["tokens"] += len(encoded.ids_N)
                counts["pieces"] += 1
            if on_progress:
                on_progress(f"{name}: tokens", counts["tokens"])
        if not counts["pieces"]:
            raise DataError(f"source {name!r} has no text in the train split: add documents or change holdout")
        shards = _write_shards(shuffler.drain(), name, vocab_size, folder, on_progress)
    return {"documents": licenses.total(), **counts, "licenses": dict(licenses), "shards": shards}


def _write_shards(
    pieces: Iterator[Encoded],
    name: str,
    vocab_size: int,
    folder: Path,
    on_progress: Callable[[str, int], None] | None,
) -> list[str]:
    """Compresses several shards at a time, since that takes longest; returns their names."""
    shards: list[str] = []
    tokens = 0
    writing: deque[Future[None]] = deque()
    with ThreadPoolExecutor(WRITERS) as pool:
        while held := _fill_shard(pieces):
            shards.append(f"{name}-{len(shards):05d}.npz")
            writing.append(pool.submit(write_shard, folder / shards[-1], held, vocab_size))
            if len(writing) > WRITERS:  # which bounds the number of shards in memory
                writing.popleft().result()
            tokens += sum(len(piece.ids_N) for piece in held)
            if on_progress:
                on_progress(f"{name}: shuffled tokens", tokens)
        for write in writing:
            write.result()
    return shards


def _fill_shard(pieces: Iterator[Encoded]) -> list[Encoded]:
    held: list[Encoded] = []
    tokens = 0
    while tokens < SHARD_TOKENS and (piece := next(pieces, None)) is not None:
        held.append(piece)
        tokens += len(piece.ids_N)
    return held
