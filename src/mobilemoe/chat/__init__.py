"""Messages to a prompt: the chat template of spec 3.4, or a model folder's own, rendered in a process with limits.

    template = ChatTemplate.load(folder)
    ids = encode_chat(tokenizer, template, [{"role": "user", "content": "Hi"}])

A template comes with a model, so it is not trusted. A message comes from anybody, so it cannot hold control ids.
"""

from mobilemoe.chat.messages import Message, check_messages
from mobilemoe.chat.parts import MARKS, Part, chat_parts, encode_chat
from mobilemoe.chat.template import CHAT_TEMPLATE, ChatTemplate

__all__ = [
    "CHAT_TEMPLATE",
    "MARKS",
    "ChatTemplate",
    "Message",
    "Part",
    "chat_parts",
    "check_messages",
    "encode_chat",
]
