"""From messages to a prompt, by the chat template of spec 3.4, or by a model's own in a process with limits.

    template = ChatTemplate.load(folder)
    ids = encode_chat(tokenizer, template, [{"role": "user", "content": "Hi"}])

A template comes with a model, so it is not trusted. A message can come from anybody, so it never becomes control ids.
"""

from mobilemoe.chat.encoding import MARKS, Part, chat_parts, encode_chat
from mobilemoe.chat.messages import Message, Tool, check_messages
from mobilemoe.chat.template import CHAT_TEMPLATE, ChatTemplate

__all__ = [
    "CHAT_TEMPLATE",
    "MARKS",
    "ChatTemplate",
    "Message",
    "Part",
    "Tool",
    "chat_parts",
    "check_messages",
    "encode_chat",
]
