"""What OpenAI and Anthropic refuse is refused here too, in a sentence about what was meant."""

import anthropic
import openai
import pytest

from servers import KEY, running

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
ASKED = {"role": "user", "content": "What is 58 minus 23?"}


def call(*names):
    function = {"name": "now", "arguments": "{}"}
    calls = [{"id": name, "type": "function", "function": function} for name in names]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def result(name):
    return {"role": "tool", "tool_call_id": name, "content": "noon"}


UNPAIRED = {
    "a result without a call": ([ASKED, result("a")], "result of 'a' does not follow"),
    "a result of another call": ([ASKED, call("a"), result("b")], "result of 'b' does not follow"),
    "a second result": ([ASKED, call("a"), result("a"), result("a")], "result of 'a' does not follow"),
    "a result after the user's words": ([ASKED, call("a"), ASKED, result("a")], "no result follows the call 'a'"),
    "no result": ([ASKED, call("a"), ASKED], "no result follows the call 'a'"),
    "no result at the end": ([ASKED, call("a")], "no result follows the call 'a'"),
    "one result of two": ([ASKED, call("a", "b"), result("b")], "no result follows the call 'a'"),
    "two calls of one name": ([ASKED, call("a", "a"), result("a"), result("a")], "two calls have the same id"),
}


def items(messages):
    """The same for Responses."""
    for message in messages:
        if message["role"] == "tool":
            yield {"type": "function_call_output", "call_id": message["tool_call_id"], "output": message["content"]}
        elif "tool_calls" in message:
            for each in message["tool_calls"]:
                yield {"type": "function_call", "call_id": each["id"], **each["function"]}
        else:
            yield message


def blocks(messages):
    """The same for Anthropic's Messages, each result in a message of the user."""
    for message in messages:
        if message["role"] == "tool":
            content = [{"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": message["content"]}]
            yield {"role": "user", "content": content}
        elif "tool_calls" in message:
            content = [
                {"type": "tool_use", "id": each["id"], "name": "now", "input": {}} for each in message["tool_calls"]
            ]
            yield {"role": "assistant", "content": content}
        else:
            yield message


@pytest.fixture(scope="module")
def client(server):
    with anthropic.Anthropic(base_url=server.root, api_key=KEY, max_retries=0, timeout=30) as client:
        yield client


@pytest.mark.parametrize("name", UNPAIRED)
def test_a_call_and_its_result_belong_together(server, client, name):
    messages, words = UNPAIRED[name]
    with pytest.raises(openai.BadRequestError, match=words):
        server.client.chat.completions.create(model="nano", messages=messages, max_tokens=3)
    with pytest.raises(openai.BadRequestError, match=words):
        server.client.responses.create(model="nano", input=[*items(messages)], max_output_tokens=16)
    asked = [*blocks(messages)]
    if asked[-1]["role"] == "assistant":
        asked.append(ASKED)
    with pytest.raises(anthropic.BadRequestError, match=words):
        client.messages.create(model="nano", messages=asked, max_tokens=3)
    assert server.http.post("/tokenize", json={"messages": messages}).status_code == 400


def test_results_may_come_in_any_order_and_in_several_turns(server):
    messages = [ASKED, call("a", "b"), result("b"), result("a"), call("a"), result("a"), ASKED]
    answer = server.client.chat.completions.create(model="nano", messages=messages, max_tokens=3)
    assert answer.usage.completion_tokens > 0


@pytest.mark.parametrize(
    ("path", "fields", "sentence"),
    [
        (CHAT, {"stop": ["a"] * 17}, "stop: List should have at most 16 items"),
        (CHAT, {"stop": 5}, "stop: Input should be a valid string"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages.0: content is missing"),
        (CHAT, {"messages": [{"role": "user", "content": []}]}, "messages.0.content: List should have at least 1 item"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text: Field req"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content.0.type: Input",
        ),
        (CHAT, {"response_format": {"type": "json_schema"}}, "response_format.json_schema: Field required"),
        (
            CHAT,
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.name: Fie",
        ),
        (CHAT, {"tool_choice": {"type": "x"}}, "tool_choice.type: Input should be 'function'"),
        (CHAT, {"max_tokens": 3, "max_completion_tokens": 5}, "max_tokens is the older name of max_completion_tokens"),
        ("/v1/completions", {"prompt": []}, "prompt: List should have at least 1 item"),
        ("/v1/completions", {"prompt": ["a"] * 129}, "prompt: List should have at most 128 items"),
        ("/v1/completions", {"structured_outputs": {}}, "structured_outputs: give one of json"),
        ("/v1/responses", {"input": []}, "input: List should have at least 1 item"),
        ("/v1/responses", {"input": [{"role": "wizard", "content": "x"}]}, "input.0.role: Input should be 'system'"),
        (
            MESSAGES,
            {"messages": [{"role": "user", "content": 5}]},
            "messages.0.content: Input should be a valid string",
        ),
        (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text: Field"),
    ],
)
def test_the_sentence_is_about_what_was_meant(server, path, fields, sentence):
    words = {CHAT: {"messages": [ASKED]}, MESSAGES: {"messages": [ASKED], "max_tokens": 3}}.get(path, {})
    answer = server.http.post(path, json={"model": "nano"} | words | fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(sentence)


def test_a_parameter_behind_the_path_is_known_or_refused(server):
    kept = server.client.responses.create(model="nano", input="Hi", max_output_tokens=16)
    with pytest.raises(openai.BadRequestError, match="no query parameter named 'stream'"):
        server.client.responses.retrieve(kept.id, stream=True)
    body = {"model": "nano", "messages": [ASKED], "max_tokens": 3}
    assert server.http.post(f"{CHAT}?n=3", json=body).json()["error"]["param"] == "n"
    assert server.http.post(f"{MESSAGES}?beta=true", json=body).status_code == 200
    assert server.http.get("/health?probe=1").status_code == 200


def test_models_come_in_pages():
    with running("--alias", "small", "--alias", "old") as server:
        with anthropic.Anthropic(base_url=server.root, api_key=KEY, max_retries=0) as client:
            page = client.models.list(limit=2)
            assert ([model.id for model in page.data], page.has_more) == (["nano", "small"], True)
            assert [model.id for model in client.models.list(limit=1)] == ["nano", "small", "old"]
            assert [model.id for model in client.models.list(limit=1, before_id="old").data] == ["small"]
            assert client.models.list(after_id="old").data == []
            with pytest.raises(anthropic.BadRequestError, match="after_id is 'none'"):
                client.models.list(after_id="none")
            with pytest.raises(anthropic.BadRequestError, match="limit: Input should be greater"):
                client.models.list(limit=0)
        assert [model.id for model in server.client.models.list()] == ["nano", "small", "old"]
