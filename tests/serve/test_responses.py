"""`/v1/responses`, asked by the official `openai` client."""

import json
from typing import Annotated

import openai
import pydantic
import pytest

from mobilemoe.serve import responses
from servers import running

QUESTION = "What is 58 minus 23?"


SERVER_OPTIONS = ("--parallel", "4")


def ask(server, **fields):
    return server.client.responses.create(**{"model": "nano", "input": QUESTION, "temperature": 0} | fields)


def chat(nano, *messages, **fields):
    roles = ("user", "assistant")
    return nano.generate(
        messages=[{"role": roles[index % 2], "content": content} for index, content in enumerate(messages)], **fields
    )


def test_a_response_has_the_same_text_as_the_verb_chat(server, nano):
    response = ask(server)
    assert response.output_text == chat(nano, QUESTION)
    assert (response.object, response.status, response.model, response.error) == ("response", "completed", "nano", None)
    [item] = response.output
    assert (item.type, item.role, item.status, item.content[0].annotations) == ("message", "assistant", "completed", [])
    assert response.usage.input_tokens == len(nano.encode(messages=[{"role": "user", "content": QUESTION}]))
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert response.incomplete_details is None


@pytest.mark.parametrize(
    "given",
    [
        [{"role": "user", "content": QUESTION}],
        [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": QUESTION}]}],
    ],
)
def test_the_input_may_be_messages_in_either_form(server, nano, given):
    assert ask(server, input=given).output_text == chat(nano, QUESTION)


def test_instructions_and_both_their_roles_are_one_system_message(server, nano):
    told = [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": QUESTION}]
    expected = nano.generate(messages=told)
    assert ask(server, instructions="Answer in one word.").output_text == expected
    for role in ("system", "developer"):
        assert ask(server, input=[{**told[0], "role": role}, told[1]]).output_text == expected


def test_the_events_of_a_stream_come_in_openai_s_order_and_join_to_the_whole(server):
    events = [*ask(server, stream=True)]
    names = [event.type for event in events]
    assert names[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert names[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert {*names[4:-4]} == {"response.output_text.delta"}
    assert [event.sequence_number for event in events] == [*range(len(events))]
    whole = ask(server)
    assert "".join(event.delta for event in events[4:-4]) == events[-4].text == whole.output_text
    last = events[-1].response
    assert (last.output_text, last.usage) == (whole.output_text, whole.usage)
    assert events[0].response.id == last.id
    assert events[0].response.status == "in_progress"
    assert {event.item_id for event in events[3:-2]} == {last.output[0].id}


def test_the_client_s_own_stream_helper_takes_the_events(server):
    with server.client.responses.stream(model="nano", input=QUESTION, temperature=0) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(pieces) == final.output_text == ask(server).output_text


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_cut_off_is_incomplete(server, stream):
    response = ask(server, max_output_tokens=3, stream=stream)
    if stream:
        events = [*response]
        assert events[-1].type == "response.incomplete"
        response = events[-1].response
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.output[0].status == "incomplete"
    assert response.usage.output_tokens == 3


def test_logprobs_come_with_each_token(server):
    chat = server.client.chat.completions.create(
        model="nano",
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        logprobs=True,
        top_logprobs=2,
    )
    expected = [(token.token, token.logprob) for token in chat.choices[0].logprobs.content]
    found = ask(server, top_logprobs=2, include=["message.output_text.logprobs"]).output[0].content[0].logprobs
    assert [(token.token, token.logprob) for token in found] == expected
    assert all(len(token.top_logprobs) == 2 for token in found)
    streamed = [
        (token.token, token.logprob)
        for event in ask(server, top_logprobs=2, stream=True)
        if event.type == "response.output_text.delta"
        for token in event.logprobs
    ]
    assert streamed == expected


def test_a_response_can_be_continued_by_its_id(server, nano):
    first = ask(server, instructions="Answer in one word.")
    second = ask(server, input="And what is 4 plus 4?", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert second.output_text == chat(nano, QUESTION, first.output_text, "And what is 4 plus 4?")
    streamed = [*ask(server, input="Why?", previous_response_id=second.id, stream=True)][-1].response
    third = ask(server, input="Why?", previous_response_id=second.id)
    assert streamed.output_text == third.output_text
    whole = [{"role": "user", "content": QUESTION}, *first.output, {"role": "user", "content": "And what is 4 plus 4?"}]
    assert ask(server, input=whole).output_text == second.output_text


def test_a_stored_response_can_be_retrieved_and_deleted(server):
    response = ask(server, metadata={"topic": "numbers"})
    assert server.client.responses.retrieve(response.id) == response
    assert response.metadata == {"topic": "numbers"}
    server.client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        server.client.responses.retrieve(response.id)
    with pytest.raises(openai.BadRequestError) as refused:
        ask(server, previous_response_id=response.id)
    assert (refused.value.code, refused.value.param) == ("previous_response_not_found", "previous_response_id")


def test_a_response_that_is_not_to_be_stored_is_not(server):
    response = ask(server, store=False)
    assert response.store is False
    with pytest.raises(openai.NotFoundError):
        server.client.responses.retrieve(response.id)


def test_the_oldest_responses_make_room_for_new_ones():
    store = responses._Store()
    text = "x" * (responses.STORED_BYTES // 4)
    for number in range(6):
        store.add({"id": f"resp_{number}", "text": text}, [])
    assert [number for number in range(6) if store.find(f"resp_{number}")] == [3, 4, 5]
    assert store.remove("resp_4")
    assert not store.remove("resp_4")
    store.add({"id": "resp_6", "text": text}, [])
    assert [number for number in range(7) if store.find(f"resp_{number}")] == [3, 5, 6]


class Sum(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    a: Annotated[int, pydantic.Field(le=99)]
    b: Annotated[int, pydantic.Field(le=99)]


ADD = {
    "type": "function",
    "name": "add",
    "description": "Adds two numbers.",
    "parameters": Sum.model_json_schema(),
    "strict": True,
}


def test_text_held_to_a_schema_fits_it_and_the_client_parses_it(server):
    response = server.client.responses.parse(model="nano", input=QUESTION, temperature=0, text_format=Sum)
    assert isinstance(response.output_parsed, Sum)
    assert response.text.format.type == "json_schema"
    with server.client.responses.stream(model="nano", input=QUESTION, temperature=0, text_format=Sum) as stream:
        assert stream.get_final_response().output_parsed == response.output_parsed
    loose = ask(server, text={"format": {"type": "json_object"}}, max_output_tokens=200)
    assert loose.status == "incomplete" or isinstance(json.loads(loose.output_text), dict)


def test_a_part_of_a_schema_that_is_not_kept_is_listed(server):
    schema = {"type": "object", "properties": {"a": {"type": "integer", "not": {"const": 3}}}}
    text = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    assert "not" in ask(server, text=text, max_output_tokens=2).x_mobilemoe["warnings"][0]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "add"}])
def test_a_function_that_has_to_be_called_is_called(server, choice):
    response = ask(server, tools=[ADD], tool_choice=choice)
    assert response.status == "completed"
    assert {item.type for item in response.output} == {"function_call"}
    call = response.output[0]
    assert call.name == "add"
    assert Sum.model_validate_json(call.arguments)
    events = [*ask(server, tools=[ADD], tool_choice=choice, stream=True)]
    names = [event.type for event in events]
    assert names[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert names[-3:] == [
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    deltas = [
        event.delta
        for event in events
        if event.type == "response.function_call_arguments.delta" and event.output_index == 0
    ]
    assert "".join(deltas) == call.arguments == events[-1].response.output[0].arguments


def test_the_output_of_a_call_goes_back_to_the_model(server):
    first = ask(server, tools=[ADD], tool_choice="required", parallel_tool_calls=False)
    [call] = first.output
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "81"}
    after = ask(server, input=[output], tools=[ADD], tool_choice="none", previous_response_id=first.id)
    assert after.output[0].type == "message"
    whole = [{"role": "user", "content": QUESTION}, call, output]
    assert ask(server, input=whole, tools=[ADD], tool_choice="none").output_text == after.output_text


def test_what_is_ignored_is_listed(server):
    response = ask(server, user="somebody", reasoning={"effort": "low"}, text={"verbosity": "low"}, max_output_tokens=2)
    expected = ["reasoning is ignored", "user is ignored", "text.verbosity is ignored"]
    assert response.x_mobilemoe == {"warnings": expected}
    assert "x_mobilemoe" not in ask(server, max_output_tokens=2).model_extra


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": []}, "input"),
        ({"metadata": {"x": "y" * 513}}, "metadata"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"input": [{"role": "critic", "content": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"temperature": 3}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"text": {"format": {"type": "xml"}}}, "text"),
        ({"extra_body": {"max_tokens": 3}}, "max_tokens"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
    ],
)
def test_a_wrong_request_names_its_field(server, change, param):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(server, **change)
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{"role": "critic", "content": "x"}], "input.0.role: Input should be 'system', 'developer', 'user'"),
        (
            [{"role": "user", "content": [{"type": "input_image"}]}],
            "input.0.content.0.type: Input should be 'input_text' or 'output_text'",
        ),
        ([{"type": "reasoning"}], "input.0: The type of an item has to be message, function_call or"),
    ],
)
def test_an_error_names_the_place_in_the_input(server, given, message):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(server, input=given)
    assert refused.value.body["message"].startswith(message)


def test_a_request_beyond_its_time_ends_the_stream_as_failed():
    with running("--request-seconds", "0.001") as server:
        events = [*ask(server, input="Tell me a story. " * 60, temperature=2, stream=True)]
        with pytest.raises(openai.InternalServerError) as refused:
            ask(server, input="Tell me a story. " * 60, temperature=2)
    assert events[-1].type == "response.failed"
    assert "limit" in events[-1].response.error.message
    assert (refused.value.status_code, refused.value.code) == (504, "deadline_exceeded")
