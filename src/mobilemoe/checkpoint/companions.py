"""The files that belong to a model besides weights and config, and are copied with it."""

from __future__ import annotations

import shutil
from pathlib import Path

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_OTHERS = ("chat_template.jinja", "chat_template.json", "generation_config.json", "README.md")
_NAMED_TEMPLATES = "additional_chat_templates"  # a folder of them, in transformers' layout


def copy_companions(source: Path, target: Path) -> None:
    """Copies the tokenizer, the chat templates and the card of the model in `source` into the folder `target`."""
    paths = [source / name for name in (*TOKENIZER_FILES, *_OTHERS)]
    for path in [*paths, *sorted((source / _NAMED_TEMPLATES).glob("*.jinja"))]:
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
