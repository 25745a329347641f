"""Conversations as people keep them, for every reader of such a file: training, preparing and scoring."""

from __future__ import annotations

from typing import Any

from mobilemoe.chat import Message, check_messages
from mobilemoe.errors import TokenizerError

# What other programs call the three: under such a name an assistant's words would be shown and never learnt.
_OTHER_NAMES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("ai", "bot", "chatbot", "chatgpt", "gpt", "model"), "assistant"),
    **{name: name for name in ("system", "user", "assistant")},
}


def clean_messages(messages: Any) -> tuple[list[Message], tuple[int, ...]]:
    """Messages of role and content alone, and the places of the assistant's that are shown and not learnt.

    Keys that are None are left out: parquet gives every message every key. `name` is left out too; `weight` 0 says what
    is not learnt. Roles are taken as they are, but for those that are one of ours under another name or in other
    letters. Raises TokenizerError for what is no conversation.
    """
    unlearnt = []
    if isinstance(messages, list) and all(isinstance(message, dict) for message in messages):
        messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
        for number, message in enumerate(messages):
            if not isinstance(message.pop("name", ""), str):
                raise TokenizerError(f"message {number} has a name that is not text")
            if message.pop("tool_calls", []) != []:
                raise TokenizerError(f"message {number} has tool_calls, but only text can be learnt: write it out")
            if "weight" in message and message.get("role") != "assistant":
                raise TokenizerError(f"message {number} has a weight, which only the assistant's may have")
            weight = message.pop("weight", 1)
            if weight not in (0, 1):
                raise TokenizerError(f"message {number} has the weight {weight!r}, but must have 0 or 1")
            if not weight:
                unlearnt.append(number)
    checked = list(check_messages(messages))
    for number, message in enumerate(checked):
        role = message["role"]
        meant = _OTHER_NAMES.get(role.strip().lower(), role)
        if role != meant:
            raise TokenizerError(f"message {number} has the role {role!r}: call it {meant!r}")
        if not role.strip():
            raise TokenizerError(f"message {number} has no role: give user, assistant or system")
    return checked, tuple(unlearnt)
