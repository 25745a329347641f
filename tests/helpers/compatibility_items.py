"""What the rows of docs/serving.md promise: Responses and Messages, whose answers are lists of items."""

from __future__ import annotations

import json

from compatibility_api import CHAT, MESSAGES, QUESTION, RESPONSES, SCHEMA, USER, Api, check, function, texts


@check("input", RESPONSES)
def _input(api: Api, route: str) -> None:
    parts = [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]
    assert api.text(route, input=USER) == api.text(route, input=parts) == api.text(route) == api.text(CHAT)


@check("instructions", RESPONSES)
@check("system", MESSAGES)
def _system(api: Api, route: str) -> None:
    told = "Answer in one word."
    name = "instructions" if route == RESPONSES else "system"
    expected = api.text(CHAT, messages=[{"role": "system", "content": told}, *USER])
    assert api.text(route, **{name: told}) == expected != api.text(route)


@check("previous_response_id", RESPONSES)
@check("store", RESPONSES)
def _goes_on(api: Api, route: str) -> None:
    first = api.post(route)
    turns = [*USER, {"role": "assistant", "content": texts(first)[0]}, {"role": "user", "content": "Why?"}]
    after = api.text(route, input="Why?", previous_response_id=first["id"])
    assert after == api.text(CHAT, messages=turns)
    api.refuses(route, "previous_response_id", api.post(route, store=False)["id"])


@check("metadata", RESPONSES)
def _metadata(api: Api, route: str) -> None:
    assert api.post(route, metadata={"a": "b"})["metadata"] == {"a": "b"}
    api.refuses(route, "metadata", {str(each): "x" for each in range(17)})


@check("include", RESPONSES)
@check("top_logprobs", RESPONSES)
def _logprobs_of_items(api: Api, route: str) -> None:
    body = api.post(route, include=["message.output_text.logprobs"], top_logprobs=2, max_output_tokens=4)
    assert [len(each["top_logprobs"]) for each in body["output"][0]["content"][0]["logprobs"]] == [2] * 4
    ignored = api.post(route, include=["reasoning.encrypted_content"])["x_mobilemoe"]["warnings"]
    assert ignored == ["reasoning.encrypted_content in include is ignored"]
    api.refuses(route, "top_logprobs", 21)


@check("text", RESPONSES)
def _text(api: Api, route: str) -> None:
    form = {"type": "json_schema", "name": "sum", "schema": SCHEMA, "strict": True}
    assert {*json.loads(api.text(route, text={"format": form}))} == {"a", "b"}
    assert api.text(route, text={"format": {"type": "json_object"}}, max_tokens=20).lstrip().startswith("{")
    assert api.text(route, text={"format": {"type": "text"}}) == api.text(route)


@check("tools", RESPONSES)
@check("tool_choice", RESPONSES)
@check("parallel_tool_calls", RESPONSES)
def _functions(api: Api, route: str) -> None:
    tools = [{"type": "function", **function()}]
    for choice in ("required", {"type": "function", "name": "add"}):
        body = api.post(route, tools=tools, tool_choice=choice, parallel_tool_calls=False)
        [call] = body["output"]
        assert (call["type"], call["name"]) == ("function_call", "add")
        assert {*json.loads(call["arguments"])} == {"a", "b"}
    assert api.text(route, tools=tools, tool_choice="none")
    api.refuses(route, "tools", [{"type": "web_search"}])


@check("stream", RESPONSES)
@check("stream_options", RESPONSES)
def _events_of_items(api: Api, route: str) -> None:
    events = api.events(route, stream_options={"include_obfuscation": True})
    pieces = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(pieces) == texts(events[-1]["response"])[0] == api.text(route)
    api.refuses(route, "stream_options", {})


@check("messages", MESSAGES)
def _turns(api: Api, route: str) -> None:
    turns = [*USER, {"role": "assistant", "content": "35."}, {"role": "user", "content": "Why?"}]
    blocks = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    assert api.text(route, messages=turns) == api.text(route, messages=blocks) == api.text(CHAT, messages=turns)
    api.refuses(route, "messages", turns[:2])


@check("stream", MESSAGES)
def _events_of_blocks(api: Api, route: str) -> None:
    events = api.events(route)
    pieces = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(pieces) == api.text(route)
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]


@check("tools", MESSAGES)
@check("tool_choice", MESSAGES)
def _uses_tools(api: Api, route: str) -> None:
    tools = [{"name": "add", "description": "Adds two numbers.", "input_schema": SCHEMA}]
    for choice in ({"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "add"}):
        body = api.post(route, tools=tools, tool_choice=choice)
        [used] = body["content"]
        assert (body["stop_reason"], used["type"], {*used["input"]}) == ("tool_use", "tool_use", {"a", "b"})
    assert api.text(route, tools=tools, tool_choice={"type": "none"})
    assert api.post(route, tools=tools, tool_choice={"type": "auto"})
    api.refuses(route, "tools", [{"type": "bash_20250124", "name": "bash"}])


@check("output_config", MESSAGES)
def _output_config(api: Api, route: str) -> None:
    form = {"type": "json_schema", "schema": SCHEMA}
    body = api.post(route, output_config={"format": form, "effort": "low"})
    assert {*json.loads(texts(body)[0])} == {"a", "b"}
    assert body["x_mobilemoe"]["warnings"] == ["output_config.effort is ignored"]


@check("thinking", MESSAGES)
def _thinking(api: Api, route: str) -> None:
    assert "x_mobilemoe" not in api.post(route, thinking={"type": "disabled"})
    assert api.post(route, thinking={"type": "adaptive"})["x_mobilemoe"]["warnings"] == ["thinking is ignored"]
    api.refuses(route, "thinking", {"type": "enabled", "budget_tokens": 1024})
