"""Messages to a prompt: the chat template of SPEC 3.4, or a model folder's own, rendered in a sandbox.

    template = ChatTemplate.load(folder)
    ids = encode_chat(tokenizer, template, [{"role": "user", "content": "Hi"}])

A template comes with a model, so it is not trusted. A message comes from anybody, so it cannot hold control ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mobilemoe.errors import TokenizerError
from mobilemoe.files import MAX_JSON_BYTES, read_json

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|header_start|>' + message['role'] + '<|header_end|>\\n\\n' + message['content'] + '<|eot|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|header_start|>assistant<|header_end|>\\n\\n' }}{% endif %}"
)

MAX_PROMPT_CHARACTERS = 2**24  # some thirty times the longest context; a template that writes more is a trap
MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # Unicode's noncharacters: no honest text holds them

Message = Mapping[str, str]


class ChatEncoder(Protocol):
    """What `encode_chat` needs of a tokenizer; `mobilemoe.tokenizer.Tokenizer` has it."""

    special_pattern: re.Pattern[str]

    def encode(self, text: str, *, bos: bool = False, special: bool = False) -> list[int]: ...


class ChatTemplate:
    """A compiled Jinja chat template with the names and functions that transformers gives to one."""

    def __init__(
        self, source: str = CHAT_TEMPLATE, *, bos_token: str = "<|begin_of_text|>", eos_token: str = "<|end_of_text|>"
    ) -> None:
        """Compiles `source`; raises TokenizerError if it is not a Jinja template."""
        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._template = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError) as fault:
            raise TokenizerError(f"the chat template is not valid Jinja: {_one_line(fault)}") from None

    @classmethod
    def load(cls, folder: Path | str) -> ChatTemplate:
        """Reads `chat_template.jinja`, else `chat_template` of `tokenizer_config.json`, from a model's folder.

        Raises TokenizerError if a file is damaged, or there is no template: a base model has none.
        """
        folder = Path(folder)
        config_path, own_path = folder / "tokenizer_config.json", folder / "chat_template.jinja"
        config = read_json(config_path, TokenizerError) if config_path.exists() else {}
        source = _read_text(own_path) if own_path.exists() else _default_template(config.get("chat_template"))
        if source is None:
            raise TokenizerError(f"the model in {folder} has no chat template: prompt it with plain text instead")
        return cls(source, bos_token=_token_text(config, "bos_token"), eos_token=_token_text(config, "eos_token"))

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The prompt for `messages`, ending where the assistant begins if `add_generation_prompt`.

        Raises TokenizerError if a message is malformed or the template fails, refuses or does what it may not.
        """
        names = {
            "messages": check_messages(messages),
            "add_generation_prompt": add_generation_prompt,
            "tools": None,  # many templates ask whether it is none
            "documents": None,
            **self._tokens,
        }
        pieces: list[str] = []
        room = MAX_PROMPT_CHARACTERS
        try:
            for piece in self._template.generate(names):
                pieces.append(piece)
                room -= len(piece)
                if room < 0:
                    raise OverflowError(f"it writes more than {MAX_PROMPT_CHARACTERS} characters")
        except Exception as fault:  # a template is a program: it can raise anything
            raise TokenizerError(f"the chat template refused these messages: {_one_line(fault)}") from None
        return "".join(pieces)


def encode_chat(
    tokenizer: ChatEncoder,
    template: ChatTemplate,
    messages: Sequence[Message],
    add_generation_prompt: bool = True,
) -> list[int]:
    """The ids of the rendered prompt: control ids where the template wrote them, never where a message did."""
    [hide] = _free_marks(template, messages, 1)
    hidden = _hide_names(messages, tokenizer.special_pattern, hide)
    rendered = template.render(hidden, add_generation_prompt=add_generation_prompt)
    ids: list[int] = []
    for index, piece in enumerate(tokenizer.special_pattern.split(rendered)):
        ids += tokenizer.encode(piece.replace(hide, ""), special=index % 2 == 1)
    return ids


class Part(NamedTuple):
    """A stretch of a rendered conversation: the name of a control token if `special`, else plain text.

    `taught` are the (begin, end) runs of its UTF-8 bytes that the assistant has to write itself.
    """

    text: str
    special: bool
    taught: tuple[tuple[int, int], ...]


def chat_parts(special_pattern: re.Pattern[str], template: ChatTemplate, messages: Sequence[Message]) -> list[Part]:
    """The parts that `encode_chat` makes of a finished conversation, and what in them is the assistant's to write.

    That is the content of its messages, and the control token after it where no more than blanks stand between.
    Raises TokenizerError for a template that changes this content by more than taking the blanks off its ends.
    """
    hide, begin, end = _free_marks(template, messages, 3)
    hidden = _hide_names(messages, special_pattern, hide)
    plain = template.render(hidden, add_generation_prompt=False)
    # Marks round the whole content; then, for a template that strips it, inside the blanks at its ends.
    for strips in (False, True):
        marked = [_mark_content(message, begin, end, strips) for message in hidden]
        rendered = template.render(marked, add_generation_prompt=False)
        if rendered.replace(begin, "").replace(end, "") == plain:
            return _split_marked(rendered, special_pattern, hide, begin, end)
    raise _rewrites()


def _split_marked(text: str, special_pattern: re.Pattern[str], hide: str, begin: str, end: str) -> list[Part]:
    content = re.compile(f"{begin}([^{begin}{end}]*){end}")
    pieces = special_pattern.split(text)
    parts = []
    closes = False
    for index, piece in enumerate(pieces):
        if index % 2:
            parts.append(Part(piece, True, ((0, len(piece.encode())),) if closes else ()))
            continue
        chunks = content.split(piece.replace(hide, ""))
        if any(begin in chunk or end in chunk for chunk in chunks[::2]):
            raise _rewrites()
        ends = list(accumulate(len(chunk.encode()) for chunk in chunks))
        runs = list(pairwise(ends))[::2]
        closes = bool(runs) and not chunks[-1].strip() and index + 1 < len(pieces)
        if closes:
            runs[-1] = (runs[-1][0], ends[-1])  # blanks before the token that closes the turn are written too
        parts.append(Part("".join(chunks), False, tuple(runs)))
    return parts


def _mark_content(message: Message, begin: str, end: str, strips: bool) -> Message:
    content = message["content"]
    core = content.strip() if strips else content
    if message["role"] != "assistant" or not content.strip():
        return message
    before, _, after = content.partition(core)
    return {**message, "content": f"{before}{begin}{core}{end}{after}"}


def _rewrites() -> TokenizerError:
    return TokenizerError("the chat template rewrites what the assistant says, so its words cannot be told from others")


def _free_marks(template: ChatTemplate, messages: Sequence[Message], count: int) -> list[str]:
    said = [text for message in check_messages(messages) for text in message.values()]
    used = "".join([template.source, *said])
    marks = [mark for mark in MARKS if mark not in used][:count]
    if len(marks) < count:
        raise TokenizerError("the messages hold too many noncharacters from U+FDD0 to U+FDEF: remove them")
    return marks


def _hide_names(messages: Sequence[Message], special_pattern: re.Pattern[str], mark: str) -> list[Message]:
    """Messages with one mark inside each control name, which hides it; overlapping names get a mark each."""
    starts = re.compile(f"(?={special_pattern.pattern})(?P<first>.)", re.DOTALL)
    return [
        {
            key: starts.sub(rf"\g<first>{mark}", text) if special_pattern.search(text) else text
            for key, text in message.items()
        }
        for message in messages
    ]


def check_messages(messages: Sequence[Message]) -> Sequence[Message]:
    """Returns `messages` if it is a list of {"role": text, "content": text}, else raises TokenizerError."""
    if not isinstance(messages, list | tuple) or not messages:
        raise TokenizerError("messages must be a list of at least one {'role': ..., 'content': ...}")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TokenizerError(f"message {index} is a {type(message).__name__}, not an object with role and content")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise TokenizerError(f"message {index} has no {key} that is text: give both role and content")
        if unknown := sorted(str(key) for key in message.keys() - {"role", "content"}):
            raise TokenizerError(f"message {index} has {', '.join(unknown)}, but only role and content are known here")
    return messages


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, undefined=_LoudUndefined, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    return environment


class _LoudUndefined(jinja2.Undefined):
    """May be asked whether it is defined or true, as templates do; writing it out is an error, not silence."""

    __str__ = jinja2.Undefined._fail_with_undefined_error


def _to_json(value: Any, indent: int | None = None) -> str:
    # Jinja's own filter escapes <, > and & for HTML, which a prompt must not.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _default_template(value: object) -> str | None:
    """The template in `chat_template` of a tokenizer_config.json: a text, or the one named "default" of a list."""
    if isinstance(value, list):
        named = (entry for entry in value if isinstance(entry, dict) and entry.get("name") == "default")
        value = next(named, {}).get("template")
    if value is not None and not isinstance(value, str):
        raise TokenizerError(f"chat_template in tokenizer_config.json is a {type(value).__name__}, not text")
    return value


def _token_text(config: Mapping[str, Any], key: str) -> str:
    """A token's text, which tokenizer_config.json gives bare or as {"content": text}."""
    value = config.get(key)
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else ""


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise TokenizerError(f"{path} is larger than the {MAX_JSON_BYTES} bytes allowed here")
        return path.read_bytes().decode()
    except UnicodeDecodeError:
        raise TokenizerError(f"{path} is not UTF-8 text") from None
    except OSError as fault:
        raise TokenizerError(f"{path} cannot be read: {fault.strerror}") from None


def _one_line(fault: Exception) -> str:
    return " ".join(str(fault).split()) or type(fault).__name__
