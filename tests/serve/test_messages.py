"""`/v1/messages`, asked by the official `anthropic` client."""

import json

import anthropic
import httpx
import pytest

from servers import KEY, running

QUESTION = "What is 58 minus 23?"


SERVER_OPTIONS = ("--parallel", "4")


@pytest.fixture(scope="module")
def client(server):
    with anthropic.Anthropic(base_url=server.root, api_key=KEY, max_retries=0, timeout=30) as client:
        yield client


GREEDY = {"temperature": 0}  # the newest clients know no temperature


def ask(client, *, extra=GREEDY, **fields):
    fields = {"model": "nano", "max_tokens": 300, "messages": [{"role": "user", "content": QUESTION}]} | fields
    return client.messages.create(**fields, extra_body=extra)


def test_a_message_has_the_same_text_as_the_verb_chat(client, nano):
    message = ask(client)
    assert [(block.type, block.text) for block in message.content] == [
        ("text", nano.generate(messages=[{"role": "user", "content": QUESTION}]))
    ]
    assert (message.type, message.role, message.model) == ("message", "assistant", "nano")
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    used = message.usage
    assert used.input_tokens + used.cache_read_input_tokens == len(
        nano.encode(messages=[{"role": "user", "content": QUESTION}])
    )
    assert used.output_tokens > 0


@pytest.mark.parametrize(
    "fields",
    [
        {"system": "Answer in one word."},
        {"system": [{"type": "text", "text": "Answer in "}, {"type": "text", "text": "one word."}]},
        {"messages": [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": QUESTION}]},
    ],
)
def test_the_system_prompt_is_the_system_message(client, nano, fields):
    told = [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": QUESTION}]
    assert ask(client, **fields).content[0].text == nano.generate(messages=told)


def test_content_may_be_blocks_and_turns_go_on(client, nano):
    turns = ["What is 2 plus 2?", "It is 4.", QUESTION]
    roles = ["user", "assistant", "user"]
    blocks = [
        {"role": role, "content": [{"type": "text", "text": turn[:5]}, {"type": "text", "text": turn[5:]}]}
        for role, turn in zip(roles, turns, strict=True)
    ]
    plain = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=True)]
    assert ask(client, messages=blocks).content == ask(client, messages=plain).content
    assert ask(client, messages=blocks).content[0].text == nano.generate(messages=plain)


def test_the_events_of_a_stream_come_in_anthropic_s_order_and_join_to_the_whole(client):
    events = [*ask(client, stream=True)]
    names = [event.type for event in events]
    assert names[:2] == ["message_start", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert {*names[2:-3]} == {"content_block_delta"}
    whole = ask(client)
    assert "".join(event.delta.text for event in events[2:-3]) == whole.content[0].text
    assert {event.index for event in events[1:-2]} == {0}
    assert events[0].message.content == []
    assert events[-2].delta.stop_reason == "end_turn"
    assert events[-2].usage.output_tokens == whole.usage.output_tokens


def test_the_client_s_own_stream_helper_takes_the_events(client):
    with client.messages.stream(
        model="nano", max_tokens=300, messages=[{"role": "user", "content": QUESTION}], extra_body=GREEDY
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    whole = ask(client)
    assert text == final.content[0].text == whole.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)


@pytest.mark.parametrize("stream", [False, True])
def test_the_reason_of_the_end_is_told(client, stream):
    def ended(**fields):
        answer = ask(client, stream=stream, **fields)
        if not stream:
            return answer.stop_reason, answer.stop_sequence
        delta = [*answer][-2].delta
        return delta.stop_reason, delta.stop_sequence

    assert ended() == ("end_turn", None)
    assert ended(max_tokens=3) == ("max_tokens", None)
    assert ended(stop_sequences=["nowhere", " 38", "38"]) == ("stop_sequence", " 38")


def test_a_text_that_fills_the_context_says_so(client, nano):
    context = nano.config.max_position_embeddings
    long = [{"role": "user", "content": "one two three four " * 1000}]
    while (tokens := len(nano.encode(messages=long))) > context - 1:  # room for two tokens, before which no answer ends
        long[0]["content"] = long[0]["content"][: -max(1, tokens - context)]
    message = ask(client, messages=long, max_tokens=2000)
    assert message.stop_reason == "model_context_window_exceeded"
    assert message.usage.output_tokens == context - tokens + 1, "the last token needs no place"


ADD = {
    "name": "add",
    "description": "Adds two numbers.",
    "input_schema": {
        "type": "object",
        "properties": {"a": {"type": "integer", "maximum": 99}, "b": {"type": "integer", "maximum": 99}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
}


@pytest.mark.parametrize(
    "choice", [{"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "add"}]
)
def test_a_tool_that_has_to_be_used_is_used(client, choice):
    fields = {"tools": [ADD], "tool_choice": choice}
    message = ask(client, **fields)
    assert message.stop_reason == "tool_use"
    used = message.content[0]
    assert (used.type, used.name) == ("tool_use", "add")
    assert {name: type(value) for name, value in used.input.items()} == {"a": int, "b": int}
    events = [*ask(client, stream=True, **fields)]
    assert [event.type for event in events[:2]] == ["message_start", "content_block_start"]
    assert (events[1].content_block.type, events[1].content_block.name) == ("tool_use", "add")
    written = "".join(
        event.delta.partial_json for event in events if event.type == "content_block_delta" and event.index == 0
    )
    assert json.loads(written) == used.input
    assert events[-2].delta.stop_reason == "tool_use"


def test_a_tool_s_result_goes_back_to_the_model(client):
    question = {"role": "user", "content": QUESTION}
    message = ask(client, tools=[ADD], tool_choice={"type": "any", "disable_parallel_tool_use": True})
    [used] = message.content
    result = {"type": "tool_result", "tool_use_id": used.id, "content": [{"type": "text", "text": "81"}]}
    after = ask(
        client,
        tools=[ADD],
        tool_choice={"type": "none"},
        messages=[question, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}],
    )
    assert after.stop_reason == "end_turn"
    assert after.content[0].type == "text"
    plain = client.messages.count_tokens(model="nano", messages=[question])
    with_tools = client.messages.count_tokens(model="nano", messages=[question], tools=[ADD])
    assert with_tools.input_tokens > plain.input_tokens, "the tools are described to the model"


def test_output_held_to_a_schema_fits_it(client):
    message = ask(client, output_config={"format": {"type": "json_schema", "schema": ADD["input_schema"]}})
    assert {*json.loads(message.content[0].text)} == {"a", "b"}
    loose = {"type": "object", "properties": {"a": {"type": "integer", "not": {"const": 3}}}}
    with pytest.raises(anthropic.BadRequestError, match="not"):  # what cannot be kept is refused
        ask(client, output_config={"format": {"type": "json_schema", "schema": loose}})


def test_top_k_and_top_p_of_one_token_are_greedy(client):
    greedy = ask(client).content
    assert ask(client, extra={"top_k": 1}).content == greedy
    assert ask(client, extra={"top_p": 1e-6}).content == greedy


def test_tokens_are_counted_as_the_message_counts_them(client):
    fields = {"system": "Be brief.", "messages": [{"role": "user", "content": QUESTION}]}
    used = ask(client, **fields).usage
    counted = client.messages.count_tokens(model="nano", **fields).input_tokens
    assert counted == used.input_tokens + used.cache_read_input_tokens


def test_what_is_ignored_is_listed(client):
    marked = [{"role": "user", "content": [{"type": "text", "text": QUESTION, "cache_control": {"type": "ephemeral"}}]}]
    message = ask(client, messages=marked, metadata={"user_id": "x"}, thinking={"type": "adaptive"}, max_tokens=2)
    expected = ["metadata is ignored", "thinking is ignored", "cache_control of a block is ignored"]
    assert message.x_mobilemoe == {"warnings": expected}
    assert "x_mobilemoe" not in ask(client, max_tokens=2).model_extra


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"messages": []}, "messages"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"messages": [{"role": "critic", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"extra": {"temperature": 1.5}}, "temperature"),
        ({"extra": {"max_token": 3}}, "max_token"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools"),
        ({"stop_sequences": [""]}, "stop"),
    ],
)
def test_a_wrong_request_is_an_error_in_anthropic_s_shape(client, change, word):
    with pytest.raises(anthropic.BadRequestError) as refused:
        ask(client, **change)
    assert {*refused.value.body} == {"type", "error"}
    assert refused.value.body["error"]["type"] == "invalid_request_error"
    assert word in refused.value.body["error"]["message"]
    assert refused.value.request_id.startswith("req_")


def test_other_errors_have_the_shape_too(server, client):
    with pytest.raises(anthropic.NotFoundError) as missing:
        ask(client, model="claude")
    assert missing.value.body["error"]["type"] == "not_found_error"
    stranger = anthropic.Anthropic(base_url=server.root, api_key="wrong", max_retries=0)
    with pytest.raises(anthropic.AuthenticationError) as refused:
        ask(stranger)
    assert refused.value.body["error"]["type"] == "authentication_error"
    large = httpx.post(f"{server.root}/v1/messages", content=b"x" * 5 * 2**20, headers={"x-api-key": KEY})
    assert (large.status_code, large.json()["error"]["type"]) == (413, "request_too_large")


def test_a_request_beyond_its_time_ends_the_stream_with_an_error():
    with running("--request-seconds", "0.001") as server:
        client = anthropic.Anthropic(base_url=server.root, api_key=KEY, max_retries=0)
        fields = {"messages": [{"role": "user", "content": "Tell me a story. " * 60}], "extra": {"top_k": 5000}}
        with pytest.raises(anthropic.APIStatusError, match="limit") as refused:
            ask(client, **fields)
        assert (refused.value.status_code, refused.value.body["error"]["type"]) == (504, "timeout_error")
        with pytest.raises(anthropic.APIStatusError, match="limit"):
            [*ask(client, stream=True, **fields)]
