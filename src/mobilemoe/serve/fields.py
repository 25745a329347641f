"""The parts of a request that ask for a structure: a format of the answer, and tools to call."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema

MAX_FIELDS = 100  # of one object
MAX_TOOLS = 128
ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


def _stop_at_first_fault(schema: Any) -> None:
    """Lets each list end at its first wrong item: pydantic would describe a million of them, in gigabytes."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        schema = list(schema.values())
    if isinstance(schema, list | tuple):
        for each in schema:
            _stop_at_first_fault(each)


class Object(BaseModel):
    """An object of a request: fields that nobody knows are refused, and a field that is null counts as not given."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _stop_at_first_fault(schema)
        return schema

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if len(value) > MAX_FIELDS:
            raise ValueError(f"there are more than {MAX_FIELDS} fields")
        return {name: each for name, each in value.items() if each is not None}


class JsonSchema(Object):
    name: ToolName
    description: str | None = None
    value: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool = False


class TextFormat(Object):
    type: Literal["text"]


class JsonObjectFormat(Object):
    type: Literal["json_object"]


class JsonSchemaFormat(Object):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StructuredOutputs(Object):
    """One of vLLM's ways to say what the answer is: a JSON schema, a regular expression, texts, or a Lark grammar."""

    value: Annotated[dict[str, Any] | None, Field(alias="json")] = None
    json_object: Literal[True] | None = None
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1)] | None = None
    grammar: str | None = None

    @model_validator(mode="after")
    def _check_one(self) -> StructuredOutputs:
        if len(self.model_fields_set) != 1:
            raise ValueError("give one of json, json_object, regex, choice and grammar")
        return self


class Function(Object):
    """Without `parameters` it takes none."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False


class Tool(Object):
    type: Literal["function"]
    function: Function


class _FunctionName(Object):
    name: str


class NamedTool(Object):
    type: Literal["function"]
    function: _FunctionName


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class CalledFunction(Object):
    name: str
    arguments: str  # JSON


class ToolCall(Object):
    """A call that an earlier answer asked for."""

    id: str
    type: Literal["function"]
    function: CalledFunction
