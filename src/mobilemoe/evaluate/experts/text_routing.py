"""Which experts the tokens of a text go to, for any checkpoint: the counts of `RouterHealth` without training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from mobilemoe.checkpoint import Checkpoint
from mobilemoe.data.encoding import Encoder, open_tokenizer
from mobilemoe.data.shards import read_json_lines, read_text, shard_kind
from mobilemoe.data.sources import Document, document_of_row
from mobilemoe.errors import DataError, UsageError
from mobilemoe.model import MobileMoE
from mobilemoe.progress import each
from mobilemoe.train.health import RouterHealth

WINDOW = 1024  # tokens that are computed together at most; a longer text is cut into several windows


def text_routing(folder: Path, text: str) -> RouterHealth:
    """Routes `text`, or the text of the file named after an @, through the model in `folder` (INT4 or BF16).

    Domains are those of the lines of a JSONL file ("domain", else "source"); anything else is one text. Raises
    UsageError for a model without experts or an empty text, DataError for a file that cannot be read.
    """
    named = (
        list(_read_file(Path(text[1:]))) if text.startswith("@") else [("text", Document(text, None, "text", "text"))]
    )
    named = [(domain, document) for domain, document in named if document.messages or (document.text or "").strip()]
    if not named:
        raise UsageError("there is no text to show the routing of")
    with Checkpoint.open(folder) as checkpoint:
        if not checkpoint.config.is_moe:
            raise UsageError(f"{folder} has no experts to show the routing of")
        model = MobileMoE(checkpoint.config).eval()
        model.load_weights(checkpoint.weight)
    domains = sorted({domain for domain, _ in named})
    health = RouterHealth(model.moe_layers(), domains)
    window = min(WINDOW, model.config.max_position_embeddings)
    encoded = Encoder(*open_tokenizer(folder)).encode([document for _, document in named])
    windows = [
        (domains.index(domain), tokens_N)
        for (domain, _), piece in zip(named, encoded, strict=True)
        for tokens_N in torch.from_numpy(piece.ids_N).long().split(window)
    ]
    for domain, tokens_N in each(windows, "windows of text"):
        with torch.inference_mode():
            _, routings = model.hidden(tokens_N.unsqueeze(0))
            health.add(routings, torch.full_like(tokens_N, domain))
    return health


def _read_file(path: Path) -> Iterator[tuple[str, Document]]:
    """The documents of a file, each with its domain."""
    try:
        if shard_kind(path.name) != "jsonl":
            yield "text", Document(read_text(path), None, path.name, path.name)
            return
        for number, row in read_json_lines(path):
            place = f"{path}, line {number},"
            document = document_of_row(row, place, place)
            if document is not None:
                yield str(row.get("domain") or row.get("source") or "text"), document
    except OSError as fault:
        raise DataError(f"{path} cannot be read: {fault.strerror}") from None
