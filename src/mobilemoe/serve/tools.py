"""Calls of tools: how a model writes them, the grammar that holds it to that, and the prompt that asks for it.

What clients say and get is data of `fields.py` and `calls.py`, whatever their protocol.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from mobilemoe.serve.errors import ApiError
from mobilemoe.serve.fields import Function, NamedTool, Tool, ToolChoice
from mobilemoe.serve.structure import grammar, json_rule, text_rule

MAX_CALLS = 16  # of one answer; a bound, for a model could write the same call forever


@dataclass(frozen=True)
class CallForm:
    """How one call is written: `begin`, {"name": NAME, `arguments`: {...}}, `end`.

    `several`: whether an answer can hold more than one. `by_template`: whether the model's own chat template writes
    it, and what the tools are; otherwise the system message says it, in our words.
    """

    begin: str
    end: str
    arguments: str
    several: bool
    by_template: bool

    def written(self, name: str, arguments: str) -> str:
        """`arguments` is JSON."""
        return f"{self.begin}{self.opening(name)}{arguments}}}{self.end}"

    def opening(self, name: str) -> str:
        return f'{{"name": {json.dumps(name)}, "{self.arguments}": '


TAGGED = CallForm("<tool_call>\n", "\n</tool_call>", "arguments", several=True, by_template=True)
BARE = CallForm("", "", "parameters", several=False, by_template=True)
OWN = CallForm("<tool_call>\n", "\n</tool_call>", "arguments", several=True, by_template=False)

_EXPLAINED = """\
You may call these functions, each given as JSON:
{tools}

To call one, write this and nothing after it, but for further calls:
<tool_call>
{{"name": NAME, "arguments": {{...}}}}
</tool_call>"""


def call_form(template: str) -> CallForm:
    """The form that a chat template teaches: that of Hermes and Qwen, that of Llama, or ours if it knows no tools."""
    if "tools" in template and "<tool_call>" in template:
        return TAGGED
    if "tools" in template and '"parameters": ' in template.replace("\\", ""):
        return BARE
    return OWN


def callable_tools(tools: Sequence[Tool], choice: ToolChoice | None) -> list[Function]:
    """Those that may be called. ApiError for a choice that there is not, and for a tool that cannot be described."""
    functions = [tool.function for tool in tools]
    names = [function.name for function in functions]
    if len({*names}) < len(names):
        raise ApiError(400, "two tools have the same name", param="tools")
    for function in functions:
        if _schema(function)["type"] != "object":
            raise ApiError(400, f"the parameters of {function.name} are not of the type object", param="tools")
    if choice == "none":
        return []
    if choice == "required" and not functions:
        raise ApiError(400, "tool_choice is required, but there are no tools", param="tool_choice")
    if isinstance(choice, NamedTool):
        if choice.function.name not in names:
            raise ApiError(400, f"there is no tool named {choice.function.name!r}", param="tool_choice")
        return [function for function in functions if function.name == choice.function.name]
    return functions


def calls_grammar(form: CallForm, functions: Sequence[Function], *, must: bool, several: bool, text: str | None) -> str:
    """Of an answer that calls `functions`: it may be text instead unless it `must` call.

    `text` is the rule of such a text; None allows any, also before a call. ApiError where both could not be told apart.
    """
    bodies = [
        f'{text_rule(form.opening(function.name))} {json_rule(_schema(function), exact=function.strict)} "}}"'
        for function in functions
    ]
    end = f" {text_rule(form.end)}" if form.end else ""
    rules = [f"call: ({' | '.join(bodies)}){end}"]
    more = ""
    if form.several and several:
        more = f" ({text_rule(chr(10) + form.begin)} call){{0,{MAX_CALLS - 1}}}"
    if must or text is not None:
        calls = f"{text_rule(form.begin)} call{more}" if form.begin else "call"
        if text is not None and not must:
            if not form.begin:
                raise ApiError(400, "this model cannot be asked for a response_format and for tools at a time")
            calls = f"{calls} | {text}"
        return grammar(f"start: {calls}", *rules)
    if form.begin:
        # A lazy lexeme ends as soon as it can: text with this lead-in in it is always a call.
        lead_in = form.begin.replace("\n", "\\n")
        return grammar(f"start: TEXT | head call{more}", f"head[lazy]: /(.|\\n)*{lead_in}/", "TEXT: /(.|\\n)*/", *rules)
    return grammar("start: TEXT | call", "TEXT: /([^{](.|\\n)*)?/", *rules)


def _schema(function: Function) -> dict[str, Any]:
    if function.parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return {"type": "object", **function.parameters}


def prompt_messages(
    form: CallForm, messages: Sequence[dict[str, Any]], functions: Sequence[Function]
) -> list[dict[str, Any]]:
    """Messages as the model's template takes them, from those of OpenAI's interface.

    With a form of its own the template is given calls and results as such, with the arguments as objects; otherwise
    they are written out here: a call as the model writes it, a result in <tool_response> from the user.
    ApiError for a call without its result, and for a result without its call.
    """
    _check_results(messages)
    if form.by_template:
        return [_with_objects(message) for message in messages]
    plain: list[dict[str, Any]] = []
    for is_result, group in groupby(messages, lambda message: message["role"] == "tool"):
        if is_result:  # those of one answer's calls: a template may want the user to speak once
            results = (f"<tool_response>\n{message['content']}\n</tool_response>" for message in group)
            plain.append({"role": "user", "content": "\n".join(results)})
        else:
            plain += [_written_out(form, message) for message in group]
    if not functions:
        return plain
    tools = "\n".join(json.dumps(_described(function), ensure_ascii=False) for function in functions)
    explained = _EXPLAINED.format(tools=tools)
    if plain[0]["role"] == "system":
        return [{**plain[0], "content": f"{plain[0]['content']}\n\n{explained}"}, *plain[1:]]
    return [{"role": "system", "content": explained}, *plain]


def _check_results(messages: Sequence[dict[str, Any]]) -> None:
    """Each call has one result, in the messages right behind it: a template may write them without their names."""
    waiting: dict[str, None] = {}  # the calls of the last answer that have no result yet
    for message in (*messages, {"role": "end"}):
        if message["role"] == "tool":
            name = message["tool_call_id"]
            if name not in waiting:
                raise _unpaired(f"the result of {name!r} does not follow a call of that name, or is the second")
            del waiting[name]
            continue
        if waiting:
            raise _unpaired(f"no result follows the call {next(iter(waiting))!r}")
        calls = message.get("tool_calls", ())
        waiting = dict.fromkeys(call["id"] for call in calls)
        if len(waiting) < len(calls):
            raise _unpaired("two calls have the same id")


def _unpaired(sentence: str) -> ApiError:
    return ApiError(400, f"tools in the conversation: {sentence}", param="messages")


def template_tools(functions: Sequence[Function]) -> list[dict[str, Any]]:
    """As a chat template of transformers takes them."""
    return [{"type": "function", "function": _described(function)} for function in functions]


def _described(function: Function) -> dict[str, Any]:
    shown = {"name": function.name, "description": function.description, "parameters": _schema(function)}
    return {name: value for name, value in shown.items() if value is not None}


def _with_objects(message: dict[str, Any]) -> dict[str, Any]:
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call["function"]
        calls.append({**call, "function": {**function, "arguments": _object(function["arguments"])}})
    return {**message, "tool_calls": calls}


def _written_out(form: CallForm, message: dict[str, Any]) -> dict[str, Any]:
    calls = [
        form.written(call["function"]["name"], json.dumps(_object(call["function"]["arguments"]), ensure_ascii=False))
        for call in message.get("tool_calls", ())
    ]
    text = [message["content"]] if message["content"] else []
    return {"role": message["role"], "content": "\n".join([*text, *calls])}


def _object(arguments: str) -> dict[str, Any]:
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ApiError(400, "a tool call in messages has arguments that are no JSON object", param="messages")
    return value
