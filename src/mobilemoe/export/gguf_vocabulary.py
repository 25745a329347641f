"""A tokenizer, its chat template and its stop ids as a GGUF file keeps them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from mobilemoe.chat import ChatTemplate
from mobilemoe.config import ModelConfig
from mobilemoe.errors import TokenizerError
from mobilemoe.tokenizer import Tokenizer
from mobilemoe.tokenizer.pipeline import SPLIT_PATTERN

if TYPE_CHECKING:
    from gguf import GGUFWriter

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama.cpp's kinds of token


def add_vocabulary(writer: GGUFWriter, folder: Path, config: ModelConfig) -> None:
    """Writes the keys `tokenizer.*` from the model's folder.

    Raises TokenizerError where there is no tokenizer, or one that splits text in another way than Llama 3's, which
    llama.cpp would not know.
    """
    tokenizer = Tokenizer.load(folder)
    parts = json.loads(tokenizer.to_json())
    if SPLIT_PATTERN not in json.dumps(parts["pre_tokenizer"], ensure_ascii=False).encode().decode("unicode_escape"):
        raise TokenizerError(f"the tokenizer in {folder} splits text in a way that llama.cpp has no name for")
    names: dict[int, str] = {id: text for text, id in parts["model"]["vocab"].items()}
    added = {token["id"]: token["content"] for token in parts["added_tokens"]}
    tokens, kinds = [], []
    for id in range(config.vocab_size):
        tokens.append(added.get(id, names.get(id, f"[PAD{id}]")))
        ordinary = USER_DEFINED if id in added else NORMAL if id in names else UNUSED
        kinds.append(CONTROL if id in tokenizer.special_ids else ordinary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = parts["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_add_bos_token(tokenizer.bos_id is not None)
    if tokenizer.bos_id is not None:
        writer.add_bos_token_id(tokenizer.bos_id)
    _add_stops(writer, tokenizer, config)
    template = ChatTemplate.find(folder)
    if template is not None:
        writer.add_chat_template(template.source)


def _add_stops(writer: GGUFWriter, tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Three stop ids have keys: end of text, end of turn, and any other one as end of message."""
    stops = list(dict.fromkeys([*config.eos_token_id, *tokenizer.stop_ids]))
    end = tokenizer.end_of_text_id if tokenizer.end_of_text_id in stops else next(iter(stops), None)
    if end is not None:
        writer.add_eos_token_id(end)
    if tokenizer.eot_id in stops and tokenizer.eot_id is not None:
        writer.add_eot_token_id(tokenizer.eot_id)
    for other in stops:
        if other not in (end, tokenizer.eot_id):
            writer.add_eom_token_id(other)
            break
