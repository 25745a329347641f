"""The held-out loss of a sweep's models: on the same tokens for each, by domain and by document.

R rows of T tokens, G documents.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mobilemoe.chat import ChatTemplate
from mobilemoe.data.config import DataConfig
from mobilemoe.data.encoding import Encoder
from mobilemoe.data.heldout import held_out_documents
from mobilemoe.data.mixture import build_sources
from mobilemoe.data.packing import NO_TARGET, Packer, Passage, Row
from mobilemoe.data.shards import read_json_lines
from mobilemoe.data.sources import Document, document_of_row
from mobilemoe.data.stream import cut_document
from mobilemoe.data.tokens import TokenSource
from mobilemoe.errors import DataError
from mobilemoe.model import MobileMoE
from mobilemoe.sweep.grid import HeldOut
from mobilemoe.tokenizer import Tokenizer
from mobilemoe.train.parallel.distributed import World
from mobilemoe.train.validation import nats_by_domain


@dataclass(frozen=True)
class Domain:
    """Rows [R, T] as training packs them (fields of `packing.Row`), the weight of the domain in the loss, and the bytes
    of text for each target.

    `documents` are the sources of the texts, which `domains_T` of a row numbers.
    """

    rows: Row
    documents: tuple[str, ...]
    share: float
    bytes_per_target: float


@dataclass(frozen=True)
class Scores:
    """`losses` are the columns of the table; `documents` are (domain, document, targets, sum of their nats)."""

    losses: dict[str, float]
    documents: list[dict[str, Any]]


@dataclass(frozen=True)
class HeldOutRows:
    """The rows of every domain by name, and a hash of all tokens."""

    domains: dict[str, Domain]
    fingerprint: str

    def score(self, model: MobileMoE, world: World, precision: str, batch_rows: int) -> Scores:
        """`loss` in nats a token, a weighted mean over the domains; `bits_per_byte`; and each `loss_DOMAIN`."""
        losses, documents = {}, []
        for name, domain in self.domains.items():
            nats_G = nats_by_domain(model, domain.rows, len(domain.documents), world, precision, batch_rows)
            taught = domain.rows.targets_T != NO_TARGET
            targets_G = np.bincount(domain.rows.domains_T[taught], minlength=len(nats_G)).tolist()
            losses[name] = sum(nats_G) / sum(targets_G)
            documents += [
                {"domain": name, "document": document, "targets": targets, "nats": round(nats, 4)}
                for document, targets, nats in zip(domain.documents, targets_G, nats_G, strict=True)
                if targets
            ]
        loss = sum(domain.share * losses[name] for name, domain in self.domains.items())
        size = sum(domain.share * domain.bytes_per_target for domain in self.domains.values())
        by_domain = {f"loss_{name}": value for name, value in losses.items()}
        return Scores({"loss": loss, "bits_per_byte": loss / size / math.log(2), **by_domain}, documents)


def read_held_out(
    heldout: HeldOut, data: DataConfig, tokenizer: Tokenizer, template: ChatTemplate, sequence_length: int
) -> HeldOutRows:
    """The held-out text in rows, the same for every run of a sweep. Raises DataError where there is too little."""
    documents = _split(data) if heldout.path is None else _of_file(Path(heldout.path), data)
    encoder = Encoder(tokenizer, template)
    total = sum(source.weight for source in data.mixture)
    domains, fingerprint = {}, hashlib.sha256()
    for source in data.mixture:
        pieces = (piece for document in documents[source.name] for piece in cut_document(document, data.piece_chars))
        rows, names, bytes_per_target = _pack(pieces, encoder, sequence_length, heldout.tokens)
        if rows is None:
            where = "" if heldout.path is None else f" in {heldout.path}"
            raise DataError(
                f"the held-out text of {source.name!r}{where} does not fill a row of {sequence_length} tokens: "
                "raise data.holdout, or name a file with more of it in heldout.path"
            )
        domains[source.name] = Domain(rows, names, source.weight / total, bytes_per_target)
        fingerprint.update(f"{source.name} {source.weight / total:.6g}\n".encode() + rows.tokens_T.tobytes())
    return HeldOutRows(domains, fingerprint.hexdigest()[:16])


def _split(data: DataConfig) -> dict[str, Iterable[Document]]:
    """The held-out split of each source, in file order."""
    sources = build_sources(data, Path.cwd())
    if any(isinstance(source, TokenSource) for source in sources.values()):
        raise DataError(
            "prepared shards hold the train split alone: name a file of held-out text in heldout.path, "
            "which `mobilemoe data sample RECIPE FILE --split heldout` writes from the text they were made from"
        )
    return {name: held_out_documents(source, data.holdout) for name, source in sources.items()}


def _of_file(path: Path, data: DataConfig) -> dict[str, Iterable[Document]]:
    """The texts of a file by their domain; domains that are not among the mixture's sources are left out."""
    if not path.is_file():
        raise DataError(f"the held-out text {path} does not exist: set heldout.path")
    found: dict[str, list[Document]] = {source.name: [] for source in data.mixture}
    try:
        for number, line in read_json_lines(path):
            document = document_of_row(line, f"{path}, line {number},", f"line {number}")
            domain = line.get("domain")
            if document is not None and isinstance(domain, str) and domain in found:
                found[domain].append(document)
    except OSError as fault:
        raise DataError(f"the held-out text {path} cannot be read: {fault.strerror}") from None
    return {**found}


def _pack(
    pieces: Iterator[Document], encoder: Encoder, length: int, limit: int
) -> tuple[Row | None, tuple[str, ...], float]:
    """The first whole rows of at most `limit` tokens, [R, T], the sources of their texts, and the bytes of text for
    each target.
    """
    targets = size = 0
    numbers: dict[str, int] = {}

    def passages() -> Iterator[Passage]:
        nonlocal targets, size
        for piece in pieces:
            ids_N = encoder.encode([piece])[0].ids_N
            targets += len(ids_N) - 1
            size += _bytes(piece)
            number = numbers.setdefault(piece.source, len(numbers))
            yield Passage(ids_N, np.ones(len(ids_N), dtype=bool), number)

    packer = Packer(passages(), length)
    rows = [row for _, row in zip(range(limit // length), packer, strict=False)]
    packed = Row(*map(np.stack, zip(*rows, strict=True))) if rows else None
    return packed, tuple(numbers), size / max(1, targets)


def _bytes(piece: Document) -> int:
    return sum(len(text.encode()) for text in (piece.text or "", *(m["content"] for m in piece.messages or ())))
