"""The messages of a conversation, and their check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mobilemoe.errors import TokenizerError

Message = Mapping[str, Any]
# A function that the assistant may call, as in OpenAI's interface: {"type": "function", "function": {"name", ...}}.
Tool = Mapping[str, Any]


def check_messages(messages: Sequence[Message], *, with_calls: bool = False) -> Sequence[Message]:
    """Returns `messages` if it is a list of {"role": text, "content": text}, else raises TokenizerError.

    `with_calls` a message may also have the assistant's `tool_calls`, or the `tool_call_id` that it answers.
    """
    known = {"role", "content"} | ({"tool_calls", "tool_call_id"} if with_calls else set())
    if not isinstance(messages, list | tuple) or not messages:
        raise TokenizerError("messages must be a list of at least one {'role': ..., 'content': ...}")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TokenizerError(f"message {index} is a {type(message).__name__}, not an object with role and content")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise TokenizerError(f"message {index} has no {key} that is text: give both role and content")
        if unknown := sorted(str(key) for key in message.keys() - known):
            raise TokenizerError(f"message {index} has {', '.join(unknown)}, but only role and content are known here")
    return messages
