"""What answers hold, as the OpenAPI schema says it; `answers.py` and the protocols' modules make them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorDetail(_Answer):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(_Answer):
    error: ErrorDetail


class Health(_Answer):
    status: Literal["loading", "ready", "draining"]
    running: int
    waiting: int


class ModelCard(_Answer):
    """In the words of OpenAI and of Anthropic."""

    id: str
    object: Literal["model"]
    type: Literal["model"]
    display_name: str
    created_at: str
    created: int
    owned_by: str
    x_mobilemoe: dict[str, Any] = {}


class ModelList(_Answer):
    object: Literal["list"]
    data: list[ModelCard]
    first_id: str
    last_id: str
    has_more: Literal[False]


class Tokens(_Answer):
    tokens: list[int]
    count: int
    max_model_len: int


class Text(_Answer):
    prompt: str


class CachedTokens(_Answer):
    cached_tokens: int


class Usage(_Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class Notes(_Answer):
    warnings: list[str]


class Routing(_Answer):
    """The experts of each token, by layer, best first."""

    routing: list[list[list[int]]]


class TopLogprob(_Answer):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(_Answer):
    content: list[TokenLogprob]
    refusal: None


class WrittenFunction(_Answer):
    name: str
    arguments: str


class WrittenCall(_Answer):
    id: str
    type: Literal["function"]
    function: WrittenFunction


class Message(_Answer):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[WrittenCall] = []


class _Choice(_Answer):
    index: int
    finish_reason: Literal["stop", "length", "tool_calls"]
    x_mobilemoe: Routing | None = None


class ChatChoice(_Choice):
    message: Message
    logprobs: ChatLogprobs | None


class _Whole(_Answer):
    id: str
    created: int
    model: str
    usage: Usage
    x_mobilemoe: Notes | None = None


class ChatCompletion(_Whole):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class CompletionLogprobs(_Answer):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(_Choice):
    text: str
    logprobs: CompletionLogprobs | None


class Completion(_Whole):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class Response(_Answer):
    """Of OpenAI's Responses API; `output` and `usage` are as its own documentation has them."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["completed", "incomplete", "failed", "in_progress"]
    model: str
    instructions: str | None
    previous_response_id: str | None
    store: bool
    metadata: dict[str, str]
    max_output_tokens: int | None
    temperature: float
    top_p: float
    top_logprobs: int
    text: dict[str, Any]
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    truncation: Literal["disabled"]
    background: Literal[False]
    error: dict[str, Any] | None
    incomplete_details: dict[str, str] | None
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None
    x_mobilemoe: Notes | None = None


class Deleted(_Answer):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class MessageErrorDetail(_Answer):
    type: str
    message: str


class MessageError(_Answer):
    """Anthropic's shape of an error."""

    type: Literal["error"]
    error: MessageErrorDetail


class ContentBlock(_Answer):
    type: Literal["text", "tool_use"]
    text: str = ""
    id: str = ""
    name: str = ""
    input: dict[str, Any] = {}


class MessageUsage(_Answer):
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class AssistantMessage(_Answer):
    """Of Anthropic's Messages API."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ContentBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]
    stop_sequence: str | None
    usage: MessageUsage
    x_mobilemoe: Notes | None = None


class ResponseTokens(_Answer):
    object: Literal["response.input_tokens"]
    input_tokens: int


class TokenCount(_Answer):
    input_tokens: int
