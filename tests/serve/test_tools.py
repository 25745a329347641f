"""Tools in chats, as the official `openai` client sends and reads them."""

import json

import openai
import pydantic
import pytest

from mobilemoe.chat import ChatTemplate
from schemas import fits
from servers import running
from tiny_model import write_model
from tool_templates import HERMES, LLAMA

QUESTION = [{"role": "user", "content": "What is 58 minus 23?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}, "sign": {"enum": ["+", "-"]}},
    "required": ["a", "b", "sign"],
    "additionalProperties": False,
}
ADD = {"type": "function", "function": {"name": "add", "description": "Adds numbers.", "parameters": PARAMETERS}}
NOW = {"type": "function", "function": {"name": "now"}}
NAMED = {"type": "function", "function": {"name": "add"}}
UNKEPT = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {"not": {"type": "null"}}}}


@pytest.fixture(scope="module")
def server():
    with running("--parallel", "4") as server:
        yield server


def ask(server, **fields):
    wanted = {"model": "nano", "messages": QUESTION, "temperature": 0, "max_tokens": 150, "tools": [ADD, NOW]}
    return server.client.chat.completions.create(**wanted | fields)


def refused(ask, param: str) -> str:
    with pytest.raises(openai.BadRequestError) as caught:
        ask()
    assert caught.value.param == param
    return caught.value.body["message"]


def test_a_named_tool_is_called_once_with_what_it_takes(server):
    for temperature in (0, 1, 2):
        choice = ask(server, tool_choice=NAMED, temperature=temperature, seed=5).choices[0]
        [call] = choice.message.tool_calls
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        assert call.type == "function"
        assert call.function.name == "add"
        assert fits(json.loads(call.function.arguments), PARAMETERS)


def test_a_required_call_is_one_of_the_tools(server):
    choice = ask(server, tool_choice="required", parallel_tool_calls=False).choices[0]
    [call] = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert call.function.name in ("add", "now")


def test_several_calls_have_ids_of_their_own(server):
    choice = ask(server, tool_choice="required", tools=[NOW], temperature=1, seed=2).choices[0]
    calls = choice.message.tool_calls
    assert 2 <= len(calls) <= 16
    assert len({call.id for call in calls}) == len(calls)


def test_auto_leaves_the_model_its_words(server):
    for choice in ({}, {"tool_choice": "auto"}):
        answer = ask(server, **choice).choices[0]
        assert answer.message.content
        assert answer.message.tool_calls is None


def test_auto_calls_where_the_model_begins_a_call(server):
    begin = server.http.post("/tokenize", json={"prompt": "<tool_call>\n", "add_special_tokens": False}).json()
    push = {str(token): 100 for token in begin["tokens"]}
    choice = ask(server, logit_bias=push, parallel_tool_calls=False).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert "tool_call" not in (choice.message.content or "")  # but for what the model may write before it begins
    [call] = choice.message.tool_calls
    assert call.function.name in ("add", "now")


def test_none_is_an_answer_as_without_tools(server):
    plain = ask(server, tools=openai.NOT_GIVEN).choices[0].message.content
    assert ask(server, tool_choice="none").choices[0].message.content == plain


def test_a_stream_brings_the_same_calls_in_pieces(server):
    fields = {"tool_choice": "required", "temperature": 1, "seed": 4}
    whole = ask(server, **fields).choices[0]
    calls, reason = {}, None
    for event in ask(server, stream=True, **fields):
        [choice] = event.choices
        reason = choice.finish_reason or reason
        assert not choice.delta.content
        for piece in choice.delta.tool_calls or []:
            if piece.index not in calls:
                assert piece.id
                assert piece.type == "function"
                calls[piece.index] = [piece.function.name, ""]
            calls[piece.index][1] += piece.function.arguments
    assert reason == whole.finish_reason
    expected = [[call.function.name, call.function.arguments] for call in whole.message.tool_calls]
    assert [calls[index] for index in range(len(calls))] == expected


def test_the_clients_own_stream_helper_puts_a_call_together(server):
    with server.client.chat.completions.stream(
        model="nano", messages=QUESTION, tools=[ADD], tool_choice=NAMED, temperature=0, max_tokens=150
    ) as stream:
        names = {event.name for event in stream if event.type == "tool_calls.function.arguments.done"}
    [call] = stream.get_final_completion().choices[0].message.tool_calls
    assert names == {call.function.name} == {"add"}


class Sum(pydantic.BaseModel):
    """Adds two numbers."""

    a: int
    b: int


def test_the_client_parses_the_arguments_into_pydantic_models(server):
    answer = server.client.chat.completions.parse(
        model="nano",
        messages=QUESTION,
        tools=[openai.pydantic_function_tool(Sum)],
        tool_choice="required",
        temperature=0,
        max_tokens=300,
        parallel_tool_calls=False,
    )
    [call] = answer.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Sum)


def test_a_conversation_goes_on_after_the_calls(server):
    message = ask(server, tool_choice=NAMED).choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "35"} for call in message.tool_calls]
    first = ask(server).usage.prompt_tokens
    for history in ([*QUESTION, message, *results], [*QUESTION, message.model_dump(), *results]):
        answer = ask(server, messages=history, max_tokens=8)
        assert answer.choices[0].message.content
        assert answer.usage.prompt_tokens > first + 10


def test_an_answer_in_a_format_may_be_a_call_instead(server):
    schema = {
        "type": "object",
        "properties": {"x": {"type": "boolean"}},
        "required": ["x"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    choice = ask(server, response_format=form, tools=[NOW], parallel_tool_calls=False).choices[0]
    if choice.message.tool_calls is None:
        assert fits(json.loads(choice.message.content), schema)
    else:
        assert choice.finish_reason == "tool_calls"


def test_a_limit_of_tokens_cuts_a_call_and_says_so(server):
    choice = ask(server, tool_choice=NAMED, max_tokens=20).choices[0]
    assert choice.finish_reason == "length"


@pytest.mark.parametrize(("template", "several"), [(HERMES, True), (LLAMA, False)], ids=["hermes", "llama"])
def test_a_model_with_a_template_for_tools_calls_in_its_form(tmp_path, template, several):
    folder = write_model(tmp_path / "random", max_position_embeddings=2048)
    ChatTemplate(template).save(folder)
    with running(model=str(folder)) as server:

        def asked(**fields):
            return ask(server, **{"model": "random", "temperature": 1, "max_tokens": 600} | fields)

        choice = asked(tool_choice=NAMED, seed=1).choices[0]
        [call] = choice.message.tool_calls
        assert choice.finish_reason == "tool_calls"
        assert fits(json.loads(call.function.arguments), PARAMETERS)
        result = {"role": "tool", "tool_call_id": call.id, "content": "35"}
        text = asked(messages=[*QUESTION, choice.message, result], max_tokens=5).choices[0].message
        assert text.tool_calls is None
        most = max(
            len(asked(tools=[NOW], tool_choice="required", seed=n).choices[0].message.tool_calls) for n in range(5)
        )
        assert (most > 1) is several


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [NOW, NOW]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]}, "tools"),
        ({"tools": [NOW], "response_format": UNKEPT}, "response_format"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "subtract"}}}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "c"}]}, "messages"),
        ({"messages": [{"role": "assistant"}]}, "messages"),
        (
            {
                "messages": [
                    *QUESTION,
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "5"}}],
                    },
                ]
            },
            "messages",
        ),
    ],
)
def test_what_is_wrong_is_named(server, fields, param):
    assert "\n" not in refused(lambda: ask(server, **fields), param)


def test_parameters_without_a_type_are_those_of_an_object(server):
    for parameters in ({}, {"properties": {"x": {"type": "null"}}, "additionalProperties": False}):
        tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
        choice = ask(server, tools=[tool], tool_choice="required", parallel_tool_calls=False).choices[0]
        assert choice.message.tool_calls[0].function.arguments.startswith("{")


def test_a_strict_tool_that_cannot_be_kept_is_refused_and_another_is_warned_of(server):
    parameters = {"type": "object", "properties": {"x": {"type": "array", "uniqueItems": True}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    assert "uniqueItems" in ask(server, tools=[tool], max_tokens=1).x_mobilemoe["warnings"][0]
    tool["function"]["strict"] = True
    assert "uniqueItems" in refused(lambda: ask(server, tools=[tool]), "tools")
