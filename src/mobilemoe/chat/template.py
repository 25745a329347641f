"""ChatTemplate: finds the chat template in a model's folder, and writes it beside a trained model.

The files, their order, and the names that a template can use are those of transformers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from mobilemoe.chat.messages import Message, Tool, check_messages
from mobilemoe.chat.renderer import ChildRenderer
from mobilemoe.chat.sandbox import Renderer, one_line
from mobilemoe.errors import TokenizerError
from mobilemoe.files import read_bytes, read_json, write_atomic, write_json

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|header_start|>' + message['role'] + '<|header_end|>\\n\\n' + message['content'] + '<|eot|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|header_start|>assistant<|header_end|>\\n\\n' }}{% endif %}"
)

OWN_TOKENS = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}

CONFIG_FILE, TEMPLATE_FILE, NAMED_FOLDER = "tokenizer_config.json", "chat_template.jinja", "additional_chat_templates"
_LEGACY_FILE, _TOKENS_FILE = "chat_template.json", "special_tokens_map.json"

# Names that every template may use; one that the tokenizer does not have is undefined, and writes nothing.
_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MAX_TEMPLATE_BYTES, _MAX_CONFIG_BYTES = 2**20, 2**23


class ChatTemplate:
    """A compiled Jinja chat template with the names and functions that transformers gives to one.

    `named` are the tokenizer's other templates, which are copied along. `marks_generation`: whether it marks the
    assistant's words by {% generation %}. `is_default`: whether the tokenizer had none, so that this is MobileMoE's.
    """

    def __init__(
        self,
        source: str = CHAT_TEMPLATE,
        *,
        tokens: Mapping[str, str] = OWN_TOKENS,
        named: Mapping[str, str] | None = None,
        is_default: bool = False,
    ) -> None:
        """Compiles `source`; raises TokenizerError if it is not a Jinja template.

        `tokens` are the special tokens that it may use, as text by name ("bos_token", ...).
        """
        self.source, self.named, self.is_default = source, dict(named or {}), is_default
        self._tokens = dict(tokens)
        self._renderer = _renderer(source)
        self.marks_generation = self._renderer.marks_generation

    @classmethod
    def load(cls, folder: Path | str) -> ChatTemplate:
        """Reads the template of a model's folder: of `chat_template.jinja`, else of `tokenizer_config.json`, else of
        the older `chat_template.json`.

        Raises TokenizerError if a file is damaged, or there is no template: a base model has none.
        """
        template = cls.find(folder)
        if template is None:
            raise TokenizerError(f"the model in {folder} has no chat template: prompt it with plain text instead")
        return template

    @classmethod
    def find(cls, folder: Path | str) -> ChatTemplate | None:
        """As `load`, but returns None if there is no template."""
        folder = Path(folder)
        config = _read_object(folder / CONFIG_FILE)
        templates, place = _find_templates(folder, config)
        if not templates:
            return None
        if "default" not in templates:
            names = ", ".join(sorted(templates))
            raise TokenizerError(f"{place} has chat templates ({names}), but none that is named default")
        source = templates.pop("default")
        try:
            return cls(source, tokens=_read_tokens(folder, config), named=templates)
        except TokenizerError as fault:
            raise TokenizerError(f"{place}: {fault}") from None

    def save(self, folder: Path) -> None:
        """Writes the template into a model's folder as transformers does, and leaves no other template there."""
        path = folder / CONFIG_FILE
        before = _read_object(path)
        config = {key: value for key, value in before.items() if key != "chat_template"}
        for name, text in self._tokens.items():
            if config.get(name) is None:
                config[name] = text
        if config != before:
            write_json(path, config if before else {"tokenizer_class": "PreTrainedTokenizerFast", **config})
        write_atomic(folder / TEMPLATE_FILE, self.source)
        for name, source in self.named.items():
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise TokenizerError(f"a chat template is named {name!r}, which cannot be a file's name")
            write_atomic(folder / NAMED_FOLDER / f"{name}.jinja", source)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        generation_marks: tuple[str, str] = ("", ""),
        tools: Sequence[Tool] | None = None,
    ) -> str:
        """The prompt for `messages`, ending where the assistant begins if `add_generation_prompt`.

        `tools` are what the assistant may call; with them, even with none, messages may hold calls and their results.
        Raises TokenizerError if a message is malformed or the template fails, refuses, does what it may not, or needs
        more time or memory than the limits allow.
        """
        names = {
            "messages": [dict(message) for message in check_messages(messages, with_calls=tools is not None)],
            "add_generation_prompt": add_generation_prompt,
            "tools": list(tools) if tools else None,  # many templates test whether it is none
            "documents": None,
            **self._tokens,
        }
        try:
            text = self._renderer.render(names, [name for name in _TOKENS if name not in names], generation_marks)
        except TokenizerError:
            raise
        except Exception as fault:
            raise TokenizerError(f"the chat template refused these messages: {one_line(fault)}") from None
        if add_generation_prompt and not text:
            raise TokenizerError("the chat template writes nothing for these messages")
        return text


@lru_cache(maxsize=8)
def _renderer(source: str) -> Renderer | ChildRenderer:
    """One for all uses of a template; MobileMoE's own needs no limited process."""
    return Renderer(source) if source == CHAT_TEMPLATE else ChildRenderer(source)


def _find_templates(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, str], Path]:
    """Templates by name, and the file they are from. Template files replace whatever a JSON file has."""
    own = folder / TEMPLATE_FILE
    paths = {path.stem: path for path in sorted((folder / NAMED_FOLDER).glob("*.jinja"))}
    if os.path.lexists(own):
        paths["default"] = own
    if paths:
        return {name: _read_template(path) for name, path in paths.items()}, paths.get("default", folder / NAMED_FOLDER)
    if (value := config.get("chat_template")) is not None:
        return _named_templates(value, folder / CONFIG_FILE), folder / CONFIG_FILE
    legacy = folder / _LEGACY_FILE
    if (value := _read_object(legacy).get("chat_template")) is not None:
        return _named_templates(value, legacy), legacy
    return {}, folder


def _named_templates(value: object, path: Path) -> dict[str, str]:
    """The templates under the key `chat_template`: one text, texts by name, or a list of {"name", "template"}."""
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, dict):
        value = [{"name": name, "template": template} for name, template in value.items()]
    if not isinstance(value, list):
        raise TokenizerError(f"chat_template in {path} is a {type(value).__name__}, not text")
    templates: dict[str, str] = {}
    for entry in value:
        name, source = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(source, str):
            raise TokenizerError(f"chat_template in {path} holds an entry that has not both name and template as text")
        templates[name] = source
    return templates


def _read_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The texts of the special tokens by name; in a file each is a string or {"content": text}."""
    named = dict(config)
    if "added_tokens_decoder" not in config:  # as transformers: the older file counts where the newer form is missing
        named |= _read_object(folder / _TOKENS_FILE)
    extra = named.get("extra_special_tokens")
    named |= extra if isinstance(extra, dict) else {}
    tokens = {}
    for name, value in named.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return tokens


def _read_object(path: Path) -> dict[str, Any]:
    return read_json(path, TokenizerError, _MAX_CONFIG_BYTES) if os.path.lexists(path) else {}


def _read_template(path: Path) -> str:
    try:
        return read_bytes(path, TokenizerError, _MAX_TEMPLATE_BYTES).decode()
    except UnicodeDecodeError:
        raise TokenizerError(f"{path} is not UTF-8 text") from None
