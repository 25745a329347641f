"""The bodies of requests: which fields there are, their types and ranges, and what becomes of fields not offered."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from mobilemoe.sampling import MAX_SEED, Sampling
from mobilemoe.serve.errors import ApiError
from mobilemoe.serve.fields import MAX_TOOLS, Object, ResponseFormat, StructuredOutputs, Tool, ToolCall, ToolChoice

MAX_TEXTS = 128  # that one request may ask for
MAX_BIASES = 1024


def _few_biases(value: Any) -> Any:
    """Counts them before each is looked at, as `Field` does not."""
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise ValueError(f"there are more than {MAX_BIASES:,} token ids")
    return value


_Stops = Annotated[list[str], Field(max_length=16)]
_Ids = Annotated[list[int], Field(min_length=1)]
_some = Field(min_length=1, max_length=MAX_TEXTS)
_Prompts = Annotated[list[str], _some] | Annotated[list[_Ids], _some]
_Biased = Annotated[str, Field(pattern="^(0|[1-9][0-9]{0,8})$")]  # a token id, as a name in JSON
_Biases = Annotated[
    dict[_Biased, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_BIASES), BeforeValidator(_few_biases)
]

# What changes no answer here. These are accepted, and named in the answer's `x_mobilemoe.warnings`.
IGNORED = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)
# What is not offered, with the values that do not ask for it.
NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "web_search_options": (),
}


def judge(given: Mapping[str, Any], ignored: Collection[str], not_offered: Mapping[str, tuple[Any, ...]]) -> list[str]:
    """What of the fields `given` is ignored. ApiError for what is not offered, and for fields that nobody knows."""
    for name, value in given.items():
        allowed = not_offered.get(name, (value,))
        if not any(type(value) is type(each) and value == each for each in allowed):  # in Python 0 equals False
            raise ApiError(400, f"{name} is not offered here", param=name, code="unsupported_parameter")
        if name not in ignored and name not in not_offered:
            raise ApiError(400, f"there is no parameter named {name!r}", param=name, code="unknown_parameter")
    return [f"{name} is ignored" for name in sorted(given) if name in ignored]


class StreamOptions(Object):
    include_usage: bool = False
    include_obfuscation: bool = False  # changes nothing here: no answer is padded


class Extension(Object):
    """`x_mobilemoe`: what OpenAI's interface has no word for. `routing` asks for the experts of each token."""

    routing: bool = False


class TextPart(Object):
    type: Literal["text"]
    text: str


class ChatMessage(Object):
    """`developer` is OpenAI's newer name of `system`; `tool` has the result of the call `tool_call_id`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(min_length=1)] = ""
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1)] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _check_role(self) -> ChatMessage:
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError("only a message of the assistant has tool_calls")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("a message has a tool_call_id if its role is tool, and only then")
        if "content" not in self.model_fields_set and self.tool_calls is None:
            raise ValueError("content is missing")
        return self

    def plain(self) -> dict[str, str]:
        """The role and the text, without calls of tools."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class _Writing(Object):
    """What requests for a chat's answer and for a plain continuation have in common. Ranges are those of OpenAI."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str
    n: Annotated[int, Field(ge=1, le=MAX_TEXTS)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: str | _Stops = Field(default_factory=list)
    seed: Annotated[int, Field(ge=-(2**63), le=MAX_SEED)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: _Biases = Field(default_factory=dict)
    x_mobilemoe: Extension = Field(default_factory=Extension)
    structured_outputs: StructuredOutputs | None = None
    prompt_cache_key: str | None = None  # changes nothing: every prompt is looked for among all that are kept

    @property
    def copies(self) -> int:
        """How many texts are written for each prompt."""
        return self.n

    @property
    def writes_nothing(self) -> bool:
        """Whether no token is asked for."""
        return False

    def sampling(self, number: int) -> Sampling:
        """The rules of one of `n` answers. A given seed is that of number 0; the others count up from it."""
        bias = {int(token): value for token, value in self.logit_bias.items()}
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=bias,
            seed=None if self.seed is None else (self.seed + number) % (MAX_SEED + 1),
        )

    def warnings(self) -> list[str]:
        """What was given and is ignored. ApiError for what is not offered, and for fields that nobody knows."""
        ignored = judge(self.model_extra or {}, IGNORED, NOT_OFFERED)
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options need stream: true", param="stream_options")
        return ignored


class ChatRequest(_Writing):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True

    @property
    def shows_logprobs(self) -> bool:
        return self.logprobs

    def most_tokens(self, context: int) -> int:
        """Without a limit an answer may fill the context."""
        return self.max_completion_tokens or self.max_tokens or context

    def wanted_logprobs(self) -> int | None:
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs need logprobs: true", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    def warnings(self) -> list[str]:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ApiError(400, "max_tokens is the older name of max_completion_tokens: give one", param="max_tokens")
        named = any(message.name is not None for message in self.messages)
        return super().warnings() + (["the name of a message is ignored"] if named else [])


class CompletionRequest(_Writing):
    prompt: str | _Prompts | _Ids
    max_tokens: Annotated[int, Field(ge=0)] = 16
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_TEXTS)] | None = None
    echo: bool = False

    @property
    def shows_logprobs(self) -> bool:
        return self.logprobs is not None

    @property
    def copies(self) -> int:
        return self.best_of or self.n

    @property
    def writes_nothing(self) -> bool:
        return self.max_tokens == 0

    def most_tokens(self, context: int) -> int:
        return self.max_tokens or 1

    def wanted_logprobs(self) -> int | None:
        """The best of several texts are found by their log-probabilities."""
        return self.logprobs if self.copies == self.n else self.logprobs or 0

    def warnings(self) -> list[str]:
        if self.copies < self.n:
            raise ApiError(400, f"best_of is {self.best_of}, but must be at least n ({self.n})", param="best_of")
        if self.stream and self.copies > self.n:
            raise ApiError(400, "best_of needs stream: false: the best are known at the end", param="best_of")
        if self.writes_nothing and not self.echo:
            raise ApiError(400, "max_tokens can only be 0 with echo: true", param="max_tokens")
        return super().warnings()

    def prompts(self) -> list[str | list[int]]:
        """Each text or list of token ids that is to be continued."""
        given: Any = self.prompt
        is_one = isinstance(given, str) or isinstance(given[0], int)
        return [given] if is_one else list(given)


class TokenizeRequest(Object):
    """A text, to which `add_special_tokens` adds the begin-of-text id, or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    add_special_tokens: bool = True


class DetokenizeRequest(Object):
    model: str | None = None
    tokens: list[int]
