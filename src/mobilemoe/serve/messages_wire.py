"""Requests of Anthropic's Messages API, and the request for a chat's answer that each comes to."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from mobilemoe.serve.errors import ApiError
from mobilemoe.serve.fields import MAX_TOOLS, Object, ToolName
from mobilemoe.serve.wire import ChatRequest, judge

# As in wire.py: what is accepted and ignored, and what is refused unless it has one of these values.
IGNORED = frozenset(
    {
        "cache_control",
        "diagnostics",
        "inference_geo",
        "metadata",
        "service_tier",
        "speed",
        "user_profile_id",
        "workspace_id",
    }
)
NOT_OFFERED: dict[str, tuple[Any, ...]] = {"container": (), "context_management": (), "mcp_servers": ([],)}
Messages = list[dict[str, Any]]  # each as chats have them


class _Block(Object):
    cache_control: dict[str, Any] | None = None  # ignored


class _Text(_Block):
    type: Literal["text"]
    text: str
    citations: list[Any] | None = None  # of an earlier answer


class _ToolUse(_Block):
    """A call that an earlier answer asked for."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]

    def call(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": json.dumps(self.input, ensure_ascii=False)},
        }


_Texts = str | list[Annotated[_Text, Field()]]


class _ToolResult(_Block):
    type: Literal["tool_result"]
    tool_use_id: str
    content: _Texts = ""
    is_error: bool = False  # ignored


def _joined(content: _Texts) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)


class _System(Object):
    role: Literal["system"]
    content: _Texts

    def add_to(self, messages: Messages) -> None:
        messages.append({"role": "system", "content": _joined(self.content)})


class _User(Object):
    role: Literal["user"]
    content: str | Annotated[list[Annotated[_Text | _ToolResult, Field(discriminator="type")]], Field(min_length=1)]

    def add_to(self, messages: Messages) -> None:
        """Results are messages of their own in a chat, before what the user says."""
        blocks = [_Text(type="text", text=self.content)] if isinstance(self.content, str) else self.content
        for block in blocks:
            if isinstance(block, _ToolResult):
                content = _joined(block.content)
                messages.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": content})
        texts = [block for block in blocks if isinstance(block, _Text)]
        if texts:
            messages.append({"role": "user", "content": _joined(texts)})


class _Assistant(Object):
    role: Literal["assistant"]
    content: str | Annotated[list[Annotated[_Text | _ToolUse, Field(discriminator="type")]], Field(min_length=1)]

    def add_to(self, messages: Messages) -> None:
        blocks = [_Text(type="text", text=self.content)] if isinstance(self.content, str) else self.content
        content = _joined([block for block in blocks if isinstance(block, _Text)])
        calls = [block.call() for block in blocks if isinstance(block, _ToolUse)]
        messages.append({"role": "assistant", "content": content, **({"tool_calls": calls} if calls else {})})


class _Tool(_Block):
    name: ToolName
    type: Literal["custom"] = "custom"
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool = True

    def function(self) -> dict[str, Any]:
        given = {"description": self.description} if self.description else {}
        return {"name": self.name, "parameters": self.input_schema, "strict": self.strict, **given}


class _Choice(Object):
    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool = False


class _NamedChoice(Object):
    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool = False


class _Format(Object):
    type: Literal["json_schema"]
    value: Annotated[dict[str, Any], Field(alias="schema")]


class _OutputConfig(Object):
    format: _Format | None = None
    effort: str | None = None


class _Thinking(Object):
    """Models of ours do not think: "adaptive" leaves it to them."""

    type: Literal["disabled", "adaptive"]
    display: str | None = None


class CountRequest(Object):
    """What a conversation is made of."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str
    messages: Annotated[list[Annotated[_System | _User | _Assistant, Field(discriminator="role")]], Field(min_length=1)]
    system: _Texts | None = None
    tools: Annotated[list[_Tool], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)
    tool_choice: Annotated[_Choice | _NamedChoice, Field(discriminator="type")] = _Choice(type="auto")
    output_config: _OutputConfig = Field(default_factory=_OutputConfig)
    thinking: _Thinking = _Thinking(type="disabled")

    def warnings(self) -> list[str]:
        """What was given and is ignored. ApiError for what is not offered, and for fields that nobody knows."""
        if self.messages[-1].role == "assistant":
            raise ApiError(400, "messages end with the assistant's: to continue it is not offered", param="messages")
        found = judge(self.model_extra or {}, IGNORED, NOT_OFFERED)
        found += ["output_config.effort is ignored"] if self.output_config.effort else []
        found += ["thinking is ignored"] if self.thinking.type == "adaptive" else []
        lists = [self.system, self.tools, *(message.content for message in self.messages)]
        blocks = [block for given in lists if isinstance(given, list) for block in given]
        found += ["cache_control of a block is ignored"] if any(block.cache_control for block in blocks) else []
        failed = any(isinstance(block, _ToolResult) and block.is_error for block in blocks)
        return found + (["is_error is ignored: the content has to say it"] if failed else [])

    def chat(self) -> ChatRequest:
        """The same request, for the answer to a chat."""
        return ChatRequest.model_validate(self._fields())

    def _fields(self) -> dict[str, Any]:
        messages: Messages = [{"role": "system", "content": _joined(self.system)}] if self.system else []
        for message in self.messages:
            message.add_to(messages)
        fields: dict[str, Any] = {"model": self.model, "messages": messages}
        choice = self.tool_choice
        if self.tools or choice.type not in ("auto", "none"):
            fields["tools"] = [{"type": "function", "function": tool.function()} for tool in self.tools]
            fields["parallel_tool_calls"] = not choice.disable_parallel_tool_use
            fields["tool_choice"] = (
                {"type": "function", "function": {"name": choice.name}}
                if isinstance(choice, _NamedChoice)
                else {"auto": "auto", "any": "required", "none": "none"}[choice.type]
            )
        if self.output_config.format is not None:
            schema = {"name": "output", "schema": self.output_config.format.value, "strict": True}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        return fields


class MessagesRequest(CountRequest):
    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: Annotated[list[str], Field(max_length=16)] = Field(default_factory=list)
    temperature: Annotated[float, Field(ge=0, le=1)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    stream: bool = False

    def _fields(self) -> dict[str, Any]:
        return super()._fields() | {
            "max_tokens": self.max_tokens,
            "stop": self.stop_sequences,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
        }
