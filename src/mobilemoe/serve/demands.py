"""What a request demands of its texts, beside sampling: the prompt, the grammar, and the form of calls in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mobilemoe.errors import TokenizerError
from mobilemoe.load import Model
from mobilemoe.serve.errors import ApiError, failed
from mobilemoe.serve.fields import Function, NamedTool
from mobilemoe.serve.structure import Grammars, Structure, format_rule, grammar, outputs_grammar
from mobilemoe.serve.tools import (
    CallForm,
    call_form,
    callable_tools,
    calls_grammar,
    prompt_messages,
    template_tools,
)
from mobilemoe.serve.wire import ChatMessage, ChatRequest, CompletionRequest


@dataclass(frozen=True)
class Demand:
    """`structure` is None where any text will do, `form` where the texts hold no calls."""

    prompts: list[list[int]]
    structure: Structure | None = None
    form: CallForm | None = None

    def warnings(self) -> list[str]:
        unkept = self.structure.unkept if self.structure is not None else ()
        return [f"a part of the schema is ignored: {sentence}" for sentence in unkept]


def chat_demand(model: Model, grammars: Grammars, body: ChatRequest) -> Demand:
    """ApiError for what cannot be kept, and where the model has no template for conversations."""
    form = call_form(_template(model))
    functions = callable_tools(body.tools, body.tool_choice)
    text = format_rule(body.response_format)
    structure = None if text is None else grammars.compile(grammar(f"start: {text}"), "response_format")
    if body.structured_outputs is not None:
        if functions or text is not None:
            raise ApiError(
                400, "structured_outputs can go with neither tools nor a response_format", param="structured_outputs"
            )
        structure = grammars.compile(outputs_grammar(body.structured_outputs), "structured_outputs")
    elif functions:
        must = body.tool_choice not in (None, "auto")
        several = body.parallel_tool_calls and not isinstance(body.tool_choice, NamedTool)
        calls = calls_grammar(form, functions, must=must, several=several, text=text)
        structure = grammars.compile(calls, "tools")
    return Demand([chat_ids(model, body.messages, functions)], structure, form if functions else None)


def completion_demand(model: Model, grammars: Grammars, body: CompletionRequest) -> Demand:
    """As `chat_demand`, for texts that are continued."""
    structure = None
    if body.structured_outputs is not None:
        structure = grammars.compile(outputs_grammar(body.structured_outputs), "structured_outputs")
    return Demand([model.encode(each) if isinstance(each, str) else each for each in body.prompts()], structure)


def chat_ids(model: Model, messages: Sequence[ChatMessage], functions: Sequence[Function] = ()) -> list[int]:
    """The prompt of a conversation in which `functions` may be called. ApiError as `chat_demand`."""
    form = call_form(_template(model))
    prompt = prompt_messages(form, [_message(message) for message in messages], functions)
    return model.encode(messages=prompt, tools=template_tools(functions) if form.by_template else None)


def _message(message: ChatMessage) -> dict[str, Any]:
    plain: dict[str, Any] = message.plain()
    if message.tool_calls is not None:
        plain["tool_calls"] = [call.model_dump() for call in message.tool_calls]
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    return plain


def _template(model: Model) -> str:
    try:
        return model.template.source
    except TokenizerError as fault:  # it names the model's folder
        failed(fault)
        raise ApiError(
            400, "this model has no usable chat template: it can only continue a prompt", code="no_chat_template"
        ) from None
