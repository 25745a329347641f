"""The tokenizer, the chat template and the model card in a GGUF file, written as the files of a model's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import models

from mobilemoe.errors import CheckpointError, TokenizerError
from mobilemoe.export.gguf_vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED
from mobilemoe.files import scratch_folder, write_atomic
from mobilemoe.imports.gguf_file import GgufFile
from mobilemoe.tokenizer import Tokenizer, add_specials, byte_level
from mobilemoe.tokenizer.json_file import read_json_file

_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def read_tokenizer(file: GgufFile) -> Tokenizer:
    """The tokenizer of `file`; CheckpointError or TokenizerError names the file and the key at fault."""
    for name, wanted in (("model", "gpt2"), ("pre", "llama-bpe")):
        if (value := file.keys.get(f"tokenizer.ggml.{name}")) != wanted:
            raise CheckpointError(f"{file.path}: tokenizer.ggml.{name} is {value!r:.60}, but only {wanted!r} is read")
    tokens, kinds, merges = (_list(file, *key) for key in (("tokens", str), ("token_type", int), ("merges", str)))
    if len(tokens) != len(kinds):
        raise CheckpointError(
            f"{file.path}: tokenizer.ggml.tokens has {len(tokens)} entries, and token_type {len(kinds)}"
        )
    vocab: dict[str, int] = {}
    added: list[dict[str, Any]] = []
    for id, (text, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind == NORMAL:
            if text in vocab:
                raise CheckpointError(f"{file.path}: tokenizer.ggml.tokens holds {text!r:.60} twice")
            vocab[text] = id
        elif kind in (CONTROL, USER_DEFINED):
            added.append({"id": id, "content": text, **_FLAGS, "special": kind == CONTROL})
        elif kind != UNUSED:
            raise CheckpointError(f"{file.path}: tokenizer.ggml.token_type is {kind} for id {id}, which is not read")
    parts = json.loads(byte_level(models.BPE()).to_str())
    # llama.cpp takes a word that is a token as it is, whatever the merges would make of it.
    parts["model"] |= {"vocab": vocab, "merges": [merge.split(" ") for merge in merges], "ignore_merges": True}
    parts["added_tokens"] = added
    try:
        with scratch_folder() as scratch:
            path = scratch / "tokenizer.json"
            write_atomic(path, json.dumps(parts))
            backend = read_json_file(path)
        if file.keys.get("tokenizer.ggml.add_bos_token"):
            add_specials(backend, [])
        return Tokenizer(backend)
    except TokenizerError as fault:
        raise TokenizerError(f"{file.path}: the keys tokenizer.ggml make no tokenizer: {fault}") from None


def write_companions(file: GgufFile, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes tokenizer, chat template and model card into `folder`."""
    template, card = (file.keys.get(key) for key in ("tokenizer.chat_template", "general.description"))
    tokenizer.save(folder, chat_template=template if isinstance(template, str) else None)
    if isinstance(card, str):
        write_atomic(folder / "README.md", card)


def _list(file: GgufFile, name: str, kind: type) -> list[Any]:
    value = file.keys.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or any(type(entry) is not kind for entry in value):
        raise CheckpointError(f"{file.path}: tokenizer.ggml.{name} is {value!r:.60}, not a list of {kind.__name__}")
    return value
