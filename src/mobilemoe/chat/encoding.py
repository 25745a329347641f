"""Encodes a conversation: renders it by its template, and marks the parts of the ids that the assistant writes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, Protocol

from mobilemoe.chat.messages import Message, Tool, check_messages
from mobilemoe.chat.template import ChatTemplate
from mobilemoe.errors import TokenizerError

MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # Unicode's noncharacters: not used in real text


class ChatEncoder(Protocol):
    """What `encode_chat` needs of a tokenizer; `mobilemoe.tokenizer.Tokenizer` has it."""

    special_pattern: re.Pattern[str]

    def encode(self, text: str, *, bos: bool = False, special: bool = False) -> list[int]: ...


def encode_chat(
    tokenizer: ChatEncoder,
    template: ChatTemplate,
    messages: Sequence[Message],
    add_generation_prompt: bool = True,
    tools: Sequence[Tool] | None = None,
) -> list[int]:
    """The ids of the rendered prompt: control ids where the template wrote them, never where a message or tool did.

    Raises TokenizerError if a message is malformed, or the template refuses the messages or leaves out the last one.
    """
    check_messages(messages, with_calls=tools is not None)
    [hide] = _free_marks(template, [*messages, *(tools or ())], 1)
    hidden = _hide_names(messages, tokenizer.special_pattern, hide)
    hidden_tools = None if tools is None else _hide_names(tools, tokenizer.special_pattern, hide)
    rendered = template.render(hidden, add_generation_prompt=add_generation_prompt, tools=hidden_tools)
    _refuse_silence(template, hidden, rendered, add_generation_prompt, hidden_tools)
    ids: list[int] = []
    for index, piece in enumerate(tokenizer.special_pattern.split(rendered)):
        ids += tokenizer.encode(piece.replace(hide, ""), special=index % 2 == 1)
    return ids


class Part(NamedTuple):
    """A stretch of a rendered conversation: the name of a control token if `special`, else plain text.

    `taught` are the (begin, end) ranges of its UTF-8 bytes that the assistant learns to write.
    """

    text: str
    special: bool
    taught: tuple[tuple[int, int], ...]


def chat_parts(
    special_pattern: re.Pattern[str],
    template: ChatTemplate,
    messages: Sequence[Message],
    unlearnt: Collection[int] = (),
) -> list[Part]:
    """The parts that `encode_chat` makes of a finished conversation, with those marked that the assistant writes.

    If the template marks them by {% generation %}, they are what it encloses, as in transformers. Otherwise they are
    the content of the assistant's messages, and the control token after it if only blanks are in between. Messages at
    the indices `unlearnt` are not marked.
    Raises TokenizerError for a template that changes this content by more than stripping blanks, leaves it out, or
    itself marks a message that is `unlearnt`.
    """
    if unlearnt and template.marks_generation:
        raise TokenizerError("its weights cannot be kept: the chat template marks by {% generation %} what is learnt")
    hide, begin, end = _free_marks(template, check_messages(messages), 3)
    hidden = _hide_names(messages, special_pattern, hide)
    plain = template.render(hidden, add_generation_prompt=False)
    if template.marks_generation:
        rendered = template.render(hidden, add_generation_prompt=False, generation_marks=(begin, end))
        if rendered.replace(begin, "").replace(end, "") == plain:
            return _split_generations(rendered, special_pattern, hide, begin, end)
        raise _rewrites()
    # Marks around the whole content first; then, for a template that strips it, inside the blanks at its ends.
    for strips in (False, True):
        marked = [
            message if place in unlearnt else _mark_content(message, begin, end, strips)
            for place, message in enumerate(hidden)
        ]
        rendered = template.render(marked, add_generation_prompt=False)
        if rendered.replace(begin, "").replace(end, "") == plain:
            if begin not in rendered and end not in rendered and marked != hidden:
                raise TokenizerError(
                    "the chat template leaves out what the assistant says: it may be for other content"
                )
            return _split_contents(rendered, special_pattern, hide, begin, end)
    raise _rewrites()


def _split_generations(text: str, special_pattern: re.Pattern[str], hide: str, begin: str, end: str) -> list[Part]:
    """The parts of a text whose marks may enclose control tokens."""
    marks = re.compile(f"([{begin}{end}])")
    parts = []
    depth = 0
    for index, piece in enumerate(special_pattern.split(text)):
        if index % 2:
            parts.append(Part(piece, True, ((0, len(piece.encode())),) if depth else ()))
            continue
        said, runs = "", []
        for chunk in marks.split(piece.replace(hide, "")):
            if chunk in (begin, end):
                depth += 1 if chunk == begin else -1
            elif chunk:
                at = len(said.encode())
                said += chunk
                runs += [(at, len(said.encode()))] if depth else []
        parts.append(Part(said, False, tuple(runs)))
    return parts


def _split_contents(text: str, special_pattern: re.Pattern[str], hide: str, begin: str, end: str) -> list[Part]:
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
            runs[-1] = (runs[-1][0], ends[-1])  # the assistant also writes blanks before the token that ends its turn
        parts.append(Part("".join(chunks), False, tuple(runs)))
    return parts


def _mark_content(message: Message, begin: str, end: str, strips: bool) -> Message:
    content = message["content"]
    core = content.strip() if strips else content
    if message["role"] != "assistant" or not content.strip():
        return message
    before, _, after = content.partition(core)
    return {**message, "content": f"{before}{begin}{core}{end}{after}"}


def _refuse_silence(
    template: ChatTemplate,
    messages: Sequence[Message],
    rendered: str,
    add_generation_prompt: bool,
    tools: Sequence[Tool] | None,
) -> None:
    """TokenizerError for a template that leaves out the last message, as those for lists of texts and pictures do."""
    *before, last = messages
    said = last["content"].strip()
    if not said or said in rendered:
        return
    # It may also rewrite it: then a longer content shows.
    other = {**last, "content": last["content"] + _free_marks(template, messages, 1)[0]}
    try:
        shown = template.render([*before, other], add_generation_prompt=add_generation_prompt, tools=tools)
    except TokenizerError:  # or refuse another
        return
    if shown == rendered:
        raise TokenizerError("the chat template leaves out the last message: it may be for other content than text")


def _rewrites() -> TokenizerError:
    return TokenizerError(
        "the chat template rewrites what the assistant says, so its words cannot be told from others: "
        "let it mark them by {% generation %}"
    )


def _free_marks(template: ChatTemplate, messages: Sequence[Message], count: int) -> list[str]:
    used = "".join([template.source, *_texts(messages)])
    marks = [mark for mark in MARKS if mark not in used][:count]
    if len(marks) < count:
        raise TokenizerError("the messages hold too many noncharacters from U+FDD0 to U+FDEF: remove them")
    return marks


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value of JSON, the names of objects' values too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _hide_names(messages: Sequence[Message], special_pattern: re.Pattern[str], mark: str) -> list[Message]:
    """Messages with one mark inside each control name, which hides it; overlapping names get a mark each."""
    starts = re.compile(f"(?={special_pattern.pattern})(?P<first>.)", re.DOTALL)

    def hidden(value: Any) -> Any:
        if isinstance(value, str):
            return starts.sub(rf"\g<first>{mark}", value) if special_pattern.search(value) else value
        if isinstance(value, Mapping):
            return {hidden(key): hidden(each) for key, each in value.items()}
        return [hidden(each) for each in value] if isinstance(value, list | tuple) else value

    return [hidden(message) for message in messages]
