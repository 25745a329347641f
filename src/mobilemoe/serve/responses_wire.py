"""Requests of OpenAI's Responses API, and the request for a chat's answer that each comes to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, TypeAdapter

from mobilemoe.serve.errors import ApiError
from mobilemoe.serve.fields import MAX_TOOLS, JsonObjectFormat, JsonSchema, Object, TextFormat, ToolName
from mobilemoe.serve.wire import ChatRequest, judge

# As in wire.py: what is accepted and ignored, and what is refused unless it has one of these values.
IGNORED = frozenset(
    {
        "max_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning",
        "safety_identifier",
        "service_tier",
        "user",
    }
)
NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "access_programs": (),
    "background": (False,),
    "background_options": (),
    "context_management": ([],),
    "conversation": (),
    "image": (),
    "moderation": (),
    "prompt": (),
    "truncation": ("disabled",),
}
LOGPROBS = "message.output_text.logprobs"
Messages = list[dict[str, Any]]  # each as chats have them


class _Part(Object):
    """A part of a message; what an earlier answer had besides its text is of no use here."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


_Content = str | Annotated[list[_Part], Field(min_length=1)]
_Status = Literal["in_progress", "completed", "incomplete"]


def _text(content: str | list[_Part]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


class _Message(Object):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: _Content
    id: str | None = None
    status: _Status | None = None
    phase: str | None = None

    def add_to(self, messages: Messages) -> None:
        messages.append({"role": self.role, "content": _text(self.content)})


class _Call(Object):
    """A call that an earlier answer asked for."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: _Status | None = None

    def add_to(self, messages: Messages) -> None:
        """The calls of one answer, and what it said before them, are one message in a chat."""
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        call = {"id": self.call_id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}
        messages[-1] = messages[-1] | {"tool_calls": [*messages[-1].get("tool_calls", []), call]}


class _CallOutput(Object):
    type: Literal["function_call_output"]
    call_id: str
    output: _Content
    id: str | None = None
    status: _Status | None = None

    def add_to(self, messages: Messages) -> None:
        messages.append({"role": "tool", "tool_call_id": self.call_id, "content": _text(self.output)})


def _kind(item: Any) -> str:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", "message")
    return str(kind)


_Item = Annotated[
    Annotated[_Message, Tag("message")]
    | Annotated[_Call, Tag("function_call")]
    | Annotated[_CallOutput, Tag("function_call_output")],
    Discriminator(
        _kind,
        custom_error_type="type_of_item",
        custom_error_message="The type of an item has to be message, function_call or function_call_output",
    ),
]
_read_item: TypeAdapter[_Message | _Call | _CallOutput] = TypeAdapter(_Item)


class _JsonSchemaFormat(JsonSchema):
    type: Literal["json_schema"]


class _TextOptions(Object):
    format: Annotated[TextFormat | JsonObjectFormat | _JsonSchemaFormat, Field(discriminator="type")] = TextFormat(
        type="text"
    )
    verbosity: str | None = None


class _Tool(Object):
    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = True


class _NamedTool(Object):
    type: Literal["function"]
    name: str


class _StreamOptions(Object):
    include_obfuscation: bool = False  # changes nothing here: no answer is padded


_Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]


class ResponsesRequest(Object):
    model_config = ConfigDict(extra="allow", strict=True)

    model: str
    input: str | Annotated[list[_Item], Field(min_length=1)]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool = True
    metadata: _Metadata = Field(default_factory=dict)
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    include: list[str] = Field(default_factory=list)
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    text: _TextOptions = Field(default_factory=_TextOptions)
    tools: Annotated[list[_Tool], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)
    tool_choice: Literal["none", "auto", "required"] | _NamedTool = "auto"
    parallel_tool_calls: bool = True
    stream: bool = False
    stream_options: _StreamOptions | None = None

    def warnings(self) -> list[str]:
        """What was given and is ignored. ApiError for what is not offered, and for fields that nobody knows."""
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options need stream: true", param="stream_options")
        found = judge(self.model_extra or {}, IGNORED, NOT_OFFERED)
        found += [f"{each} in include is ignored" for each in self.include if each != LOGPROBS]
        return found + (["text.verbosity is ignored"] if self.text.verbosity else [])

    def messages(self, before: Sequence[dict[str, Any]]) -> Messages:
        """The conversation, without the instructions, which hold for this request only: `before` and the input."""
        messages = [*before]
        if isinstance(self.input, str):
            messages.append({"role": "user", "content": self.input})
        else:
            for item in self.input:
                item.add_to(messages)
        return messages

    @staticmethod
    def extended(messages: Messages, output: Sequence[dict[str, Any]]) -> Messages:
        """`messages` with the items of the response to them."""
        extended = [*messages]
        for item in output:
            _read_item.validate_python(item).add_to(extended)
        return extended

    def chat(self, messages: Messages) -> ChatRequest:
        """The same request, for the answer to a chat of the instructions and `messages`."""
        instructions = [{"role": "system", "content": self.instructions}] if self.instructions else []
        fields: dict[str, Any] = {
            "model": self.model,
            "messages": [*instructions, *messages],
            "max_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "logprobs": self.top_logprobs > 0 or LOGPROBS in self.include,
            "top_logprobs": self.top_logprobs or None,
            "response_format": self._format(),
        }
        if self.tools or self.tool_choice not in ("auto", "none"):
            fields["tools"] = [
                {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}
                for tool in self.tools
            ]
            fields["tool_choice"] = (
                self.tool_choice
                if isinstance(self.tool_choice, str)
                else {"type": "function", "function": {"name": self.tool_choice.name}}
            )
            fields["parallel_tool_calls"] = self.parallel_tool_calls
        return ChatRequest.model_validate(fields)

    def _format(self) -> dict[str, Any] | None:
        kind = self.text.format
        if isinstance(kind, _JsonSchemaFormat):
            schema = kind.model_dump(by_alias=True, exclude={"type"}, exclude_none=True)
            return {"type": "json_schema", "json_schema": schema}
        return None if isinstance(kind, TextFormat) else {"type": kind.type}
