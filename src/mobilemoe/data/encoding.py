"""Encodes documents, many at a time, and marks the tokens of a conversation that the assistant writes."""

from __future__ import annotations

import os
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate, chain, islice
from pathlib import Path
from unicodedata import normalize

import numpy as np

from mobilemoe.chat import ChatTemplate, Part, chat_parts
from mobilemoe.data.sources import Document, Encoded, digest
from mobilemoe.data.stream import cut_text
from mobilemoe.errors import DataError, TokenizerError
from mobilemoe.hub import find_model
from mobilemoe.tokenizer import EOT, HEADER_END, HEADER_START, Tokenizer

LONGEST_CHARS = 2**19  # of a text that are tokenised in one go


class Encoder:
    """Encodes documents with a tokenizer and a chat template.

    A text becomes BOS, its tokens and, after its last piece, end-of-text. A conversation is written by the template.
    Raises DataError if the tokenizer lacks BOS or end-of-text.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        if tokenizer.bos_id is None or tokenizer.end_of_text_id is None:
            raise DataError("the tokenizer has no begin-of-text or no end-of-text token: train with one that has both")
        self._tokenizer = tokenizer
        self._template = template
        self._bos_id = tokenizer.bos_id
        self._end_of_text_id = tokenizer.end_of_text_id
        # States and prepared shards count tokens, so they are only valid with the same tokenizer. A short text is
        # enough to tell most tokenizers apart.
        probe = tokenizer.encode_batch(["The packed rows of 1,024 tokens: naïve, isn't it?\n\n    return 0"])
        self.fingerprint = digest(repr((probe, self._bos_id, self._end_of_text_id, template.source)))

    def encode(self, documents: Sequence[Document]) -> list[Encoded]:
        """The ids of each document; documents from prepared shards already have theirs.

        Raises DataError naming the document for a conversation that the template refuses.
        """
        split = [self._parts(document) for document in documents]
        try:
            ids = self._ids(part.text for parts in split for part in parts if not part.special)
        except TokenizerError as fault:
            raise self._refusal(documents, split, fault) from None
        encoded = []
        for document, parts in zip(documents, split, strict=True):
            if document.encoded is not None:
                encoded.append(document.encoded)
            elif document.text is not None:
                framed = [self._bos_id, *ids[document.text], *([self._end_of_text_id] if document.ends else [])]
                encoded.append(Encoded(np.array(framed), None))
            else:
                encoded.append(self._join(parts, ids))
        return encoded

    def _ids(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """The ids of each different text. Very long ones are cut: the tokenizer refuses a million blanks in a row."""
        cut = {text: cut_text(text, LONGEST_CHARS) for text in texts}
        ids = iter(self._tokenizer.encode_batch(list(chain.from_iterable(cut.values()))))
        return {
            text: next(ids) if len(pieces) == 1 else list(chain.from_iterable(islice(ids, len(pieces))))
            for text, pieces in cut.items()
        }

    def _refusal(self, documents: Sequence[Document], split: Sequence[list[Part]], of_all: TokenizerError) -> DataError:
        """The error that names the first document which the tokenizer refuses."""
        for document, parts in zip(documents, split, strict=True):
            try:
                self._ids(part.text for part in parts if not part.special)
            except TokenizerError as fault:
                return DataError(f"{document.key} of {document.source} cannot be split into tokens: {fault}")
        return DataError(f"one of {documents[0].key} to {documents[-1].key} cannot be split into tokens: {of_all}")

    def _parts(self, document: Document) -> list[Part]:
        if document.encoded is not None:
            return []
        if document.text is not None:
            return [Part(document.text, False, ())]
        if not writes_chats(self._tokenizer, self._template):
            raise DataError(
                f"{document.key} of {document.source} is a conversation, but the tokenizer has neither a chat template "
                f"nor the control tokens of MobileMoE's ({HEADER_START}, {HEADER_END}, {EOT}): put a "
                "chat_template.jinja beside it"
            )
        messages = document.messages or []
        if self._tokenizer.composes:  # before the taught parts are counted in bytes
            messages = [{key: normalize("NFC", text) for key, text in message.items()} for message in messages]
        try:
            return chat_parts(self._tokenizer.special_pattern, self._template, messages, document.unlearnt)
        except TokenizerError as fault:
            raise DataError(f"{document.key} of {document.source} cannot be encoded: {fault}") from None

    def _join(self, parts: list[Part], ids: dict[str, list[int]]) -> Encoded:
        lists: list[list[int]] = []
        taught: list[slice] = []
        start = 0
        for part in parts:
            lists.append([self._special_ids[part.text]] if part.special else ids[part.text])
            if part.special and part.taught:
                taught.append(slice(start, start + 1))
            elif part.taught:
                # A token is taught if any byte of it is: the first or last word may share a token with the template.
                ends = list(accumulate(map(self._sizes.__getitem__, lists[-1])))
                for begin, end in part.taught:
                    taught.append(slice(start + bisect_right(ends, begin), start + bisect_left(ends, end) + 1))
            start += len(lists[-1])
        taught_N = np.zeros(start, dtype=bool)
        for run in taught:
            taught_N[run] = True
        return Encoded(np.array(list(chain.from_iterable(lists)), dtype=np.int64), taught_N)

    @cached_property
    def _sizes(self) -> list[int]:
        """Bytes by token id."""
        return [len(self._tokenizer.token_bytes(i, skip_special=False)) for i in range(self._tokenizer.vocab_size)]

    @cached_property
    def _special_ids(self) -> dict[str, int]:
        return {self._tokenizer.token_bytes(i, skip_special=False).decode(): i for i in self._tokenizer.special_ids}


def open_tokenizer(name: Path | str) -> tuple[Tokenizer, ChatTemplate]:
    """The tokenizer of a folder, bundled model or Hub id, and its chat template: spec 3.4's if it has none, as base
    models have, which standard error then says.

    Raises TokenizerError for a tokenizer or a template that cannot be used.
    """
    folder = find_model(name, weights=False)
    tokenizer = Tokenizer.load(folder)
    template = ChatTemplate.find(folder)
    if template is None:
        template = ChatTemplate(is_default=True)
        if writes_chats(tokenizer, template) and os.environ.get("RANK", "0") == "0":  # of torchrun's processes one
            sentence = "has no chat template: conversations are written in MobileMoE's, which checkpoints then carry"
            print(f"mobilemoe: the tokenizer in {folder} {sentence}", file=sys.stderr)
    return tokenizer, template


def writes_chats(tokenizer: Tokenizer, template: ChatTemplate) -> bool:
    """Whether the tokenizer has the control tokens of the template; it may lack those of our default template."""
    ids = {name: tokenizer.encode(name, special=True) for name in (HEADER_START, HEADER_END, EOT)}
    return not template.is_default or all(len(found) == 1 for found in ids.values())
