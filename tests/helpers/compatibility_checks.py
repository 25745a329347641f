"""What each row of the tables in docs/serving.md promises, checked by plain HTTP against nano.

A check gets the API and the route that the row is about; `CHECKS` has them by route and field.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from typing import Any

import httpx

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
QUESTION = "What is 58 minus 23?"
USER = [{"role": "user", "content": QUESTION}]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "maximum": 99}, "b": {"type": "integer", "maximum": 99}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
_BASES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": USER, "temperature": 0},
    COMPLETIONS: {"prompt": "Once upon a time", "temperature": 0},
    RESPONSES: {"input": QUESTION, "temperature": 0},
    MESSAGES: {"messages": USER, "temperature": 0, "max_tokens": 100},
}
# Values of fields that are ignored or refused.
SAMPLES: dict[str, Any] = {
    "access_programs": {"cyber": "standard"},
    "audio": {"voice": "alloy", "format": "wav"},
    "background": True,
    "background_options": {"completion_window": "soonest"},
    "cache_control": {"type": "ephemeral"},
    "container": "container_1",
    "context_management": [{"type": "compaction"}],
    "conversation": "conv_1",
    "diagnostics": {},
    "function_call": {"name": "add"},
    "functions": [{"name": "add"}],
    "image": {"context_compression": "auto"},
    "inference_geo": "eu",
    "max_tool_calls": 2,
    "metadata": {"user_id": "x"},
    "modalities": ["text", "audio"],
    "moderation": {"model": "omni-moderation-latest"},
    "prediction": {"type": "content", "content": "x"},
    "prompt": {"id": "pmpt_1"},
    "prompt_cache_key": "x",
    "prompt_cache_options": {"mode": "implicit"},
    "prompt_cache_retention": "24h",
    "reasoning": {"effort": "low"},
    "reasoning_effort": "low",
    "safety_identifier": "x",
    "service_tier": "auto",
    "speed": "standard",
    "store": False,
    "suffix": "the end",
    "truncation": "auto",
    "user": "somebody",
    "user_profile_id": "x",
    "verbosity": "low",
    "web_search_options": {},
    "workspace_id": "x",
}


class Api:
    """Asks each route with a minimal request, changed by `fields`."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def ask(self, route: str, **fields: Any) -> httpx.Response:
        body = {"model": "nano", **_BASES[route], **fields}
        if route == RESPONSES and "max_tokens" in body:
            body["max_output_tokens"] = body.pop("max_tokens")
        return self.http.post(route, json=body)

    def post(self, route: str, **fields: Any) -> dict[str, Any]:
        response = self.ask(route, **fields)
        assert response.status_code == 200, response.text
        return response.json()

    def text(self, route: str, **fields: Any) -> str:
        return texts(self.post(route, **fields))[0]

    def refuses(self, route: str, field: str, value: Any, **fields: Any) -> None:
        response = self.ask(route, **{field: value}, **fields)
        assert response.status_code == 400, response.text
        assert field in response.json()["error"]["message"]

    def events(self, route: str, **fields: Any) -> list[dict[str, Any]]:
        lines = self.ask(route, stream=True, **fields).text.splitlines()
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        return [json.loads(each) for each in data if each != "[DONE]"]


def texts(body: dict[str, Any]) -> list[str]:
    """The texts of an answer of any protocol."""
    if "choices" in body:
        return [choice["text"] if "text" in choice else choice["message"]["content"] for choice in body["choices"]]
    if "output" in body:
        return [item["content"][0]["text"] for item in body["output"] if item["type"] == "message"]
    return ["".join(block["text"] for block in body["content"] if block["type"] == "text")]


def written(body: dict[str, Any]) -> int:
    """The number of tokens written."""
    return body["usage"].get("completion_tokens", body["usage"].get("output_tokens"))


Check = Callable[[Api, str], None]
CHECKS: dict[tuple[str, str], Check] = {}


def check(field: str, *routes: str) -> Callable[[Check], Check]:
    def register(function: Check) -> Check:
        CHECKS.update({(route, field): function for route in routes})
        return function

    return register


@check("", f"POST {CHAT}", f"POST {COMPLETIONS}", f"POST {RESPONSES}", f"POST {MESSAGES}")
def _answers(api: Api, route: str) -> None:
    assert api.text(route.split(" ")[1])


@check("", "GET /v1/responses/ID")
def _retrieves(api: Api, route: str) -> None:
    made = api.post(RESPONSES)
    assert api.http.get(f"{RESPONSES}/{made['id']}").json() == made
    assert api.http.get(f"{RESPONSES}/resp_0").status_code == 404


@check("", "DELETE /v1/responses/ID")
def _forgets(api: Api, route: str) -> None:
    path = f"{RESPONSES}/{api.post(RESPONSES)['id']}"
    assert api.http.delete(path).json()["deleted"] is True
    assert api.http.get(path).status_code == api.http.delete(path).status_code == 404


@check("", "POST /v1/messages/count_tokens")
def _counts(api: Api, route: str) -> None:
    counted = api.http.post(f"{MESSAGES}/count_tokens", json={"model": "nano", "messages": USER}).json()
    asked = api.http.post("/tokenize", json={"messages": USER}).json()
    assert counted == {"input_tokens": asked["count"]}


@check("", "POST /v1/responses/input_tokens")
def _counts_input(api: Api, route: str) -> None:
    first = api.post(RESPONSES, instructions="Be brief.")
    counted = api.http.post(f"{RESPONSES}/input_tokens", json={"model": "nano", "input": USER}).json()
    assert counted == {"object": "response.input_tokens", "input_tokens": api.post(RESPONSES)["usage"]["input_tokens"]}
    again = {"model": "nano", "input": "Why?", "previous_response_id": first["id"]}
    after = api.post(RESPONSES, **again)["usage"]["input_tokens"]
    assert api.http.post(f"{RESPONSES}/input_tokens", json=again).json()["input_tokens"] == after


@check("", "GET /v1/models")
def _lists(api: Api, route: str) -> None:
    listed = api.http.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["nano"]
    assert (listed["object"], listed["has_more"]) == ("list", False)


@check("", "GET /v1/models/NAME")
def _describes(api: Api, route: str) -> None:
    model = api.http.get("/v1/models/nano").json()
    assert (model["object"], model["type"], model["id"]) == ("model", "model", "nano")
    assert api.http.get("/v1/models/other").status_code == 404


@check("", "POST /tokenize", "POST /detokenize")
def _turns_text_into_ids_and_back(api: Api, route: str) -> None:
    ids = api.http.post("/tokenize", json={"prompt": "A sea", "add_special_tokens": False}).json()["tokens"]
    assert api.http.post("/detokenize", json={"tokens": ids}).json() == {"prompt": "A sea"}


@check("", "GET /health")
def _is_well(api: Api, route: str) -> None:
    assert api.http.get("/health").json()["status"] == "ready"


@check("", "GET /metrics")
def _measures(api: Api, route: str) -> None:
    assert "mobilemoe_requests_total" in api.http.get("/metrics").text


@check("", "GET /openapi.json")
def _describes_itself(api: Api, route: str) -> None:
    assert CHAT in api.http.get("/openapi.json").json()["paths"]


@check("", "GET /")
def _has_a_page(api: Api, route: str) -> None:
    assert api.http.get("/").headers["Content-Type"].startswith("text/html")


@check("model", CHAT, COMPLETIONS, RESPONSES, MESSAGES)
def _model(api: Api, route: str) -> None:
    assert api.post(route)["model"] == "nano"
    assert api.ask(route, model="other").status_code == 404


@check("max_tokens", CHAT, COMPLETIONS, MESSAGES)
@check("max_completion_tokens", CHAT)
@check("max_output_tokens", RESPONSES)
def _most_tokens(api: Api, route: str) -> None:
    names = {RESPONSES: ["max_output_tokens"], CHAT: ["max_tokens", "max_completion_tokens"]}
    for name in names.get(route, ["max_tokens"]):
        assert written(api.post(route, **{name: 3})) == 3
        api.refuses(route, name, -1)


def _open(route: str) -> dict[str, Any]:
    """A request that nano answers differently each time."""
    story = "Tell me a story about the sea."
    asked = {COMPLETIONS: {"prompt": story}, RESPONSES: {"input": story}}
    return {"temperature": 1, "max_tokens": 30, **asked.get(route, {"messages": [{"role": "user", "content": story}]})}


@check("temperature", CHAT, COMPLETIONS, RESPONSES, MESSAGES)
def _temperature(api: Api, route: str) -> None:
    assert api.text(route) == api.text(route)
    assert len({api.text(route, **_open(route)) for _ in range(8)}) > 1
    api.refuses(route, "temperature", 1.5 if route == MESSAGES else 2.5)


@check("top_p", CHAT, COMPLETIONS, RESPONSES, MESSAGES)
@check("top_k", CHAT, COMPLETIONS, MESSAGES)
@check("min_p", CHAT, COMPLETIONS)
def _narrow_sampling_is_greedy(api: Api, route: str) -> None:
    narrow = {"top_p": 1e-9, "top_k": 1, "min_p": 1}
    for name in [*narrow] if route in (CHAT, COMPLETIONS) else ["top_p"] if route == RESPONSES else ["top_p", "top_k"]:
        assert api.text(route, temperature=1, **{name: narrow[name]}) == api.text(route)
        api.refuses(route, name, -1)


@check("repetition_penalty", CHAT, COMPLETIONS)
@check("presence_penalty", CHAT, COMPLETIONS)
@check("frequency_penalty", CHAT, COMPLETIONS)
def _penalties(api: Api, route: str) -> None:
    [token] = api.http.post("/tokenize", json={"prompt": " the", "add_special_tokens": False}).json()["tokens"]

    def changes(**penalty: Any) -> bool:
        """Whether a text that repeats a word, by ever more bias, becomes another one."""
        pushed = ({"logit_bias": {str(token): bias}, "max_tokens": 8} for bias in range(4, 20, 2))
        return any(api.text(route, **fields) != api.text(route, **fields, **penalty) for fields in pushed)

    for name, value in {"repetition_penalty": 10, "presence_penalty": 2, "frequency_penalty": 2}.items():
        assert changes(**{name: value}), name
        api.refuses(route, name, -3)


@check("logit_bias", CHAT, COMPLETIONS)
def _bias(api: Api, route: str) -> None:
    [token] = api.http.post("/tokenize", json={"prompt": " the", "add_special_tokens": False}).json()["tokens"]
    assert api.text(route, logit_bias={str(token): 100}, max_tokens=3) == " the the the"
    api.refuses(route, "logit_bias", {str(token): 101})


@check("seed", CHAT, COMPLETIONS)
def _seed(api: Api, route: str) -> None:
    drawn = _open(route)
    assert api.text(route, seed=5, **drawn) == api.text(route, seed=5, **drawn)
    assert len({api.text(route, seed=seed, **drawn) for seed in range(8)}) > 1


@check("n", CHAT, COMPLETIONS)
def _several(api: Api, route: str) -> None:
    assert len(texts(api.post(route, n=3, max_tokens=2))) == 3
    api.refuses(route, "n", 129)


@check("stop", CHAT, COMPLETIONS)
@check("stop_sequences", MESSAGES)
def _stop(api: Api, route: str) -> None:
    whole, name = api.text(route), "stop_sequences" if route == MESSAGES else "stop"
    stop = whole[5:8]
    body = api.post(route, **{name: [stop]})
    assert texts(body)[0] == whole[: whole.index(stop)]
    assert route != MESSAGES or (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", stop)
    api.refuses(route, name, ["x"] * 17)


@check("logprobs", CHAT, COMPLETIONS)
@check("top_logprobs", CHAT)
def _logprobs(api: Api, route: str) -> None:
    if route == CHAT:
        body = api.post(route, logprobs=True, top_logprobs=2, max_tokens=4)
        found = [len(token["top_logprobs"]) for token in body["choices"][0]["logprobs"]["content"]]
        api.refuses(route, "top_logprobs", 21, logprobs=True)
    else:
        body = api.post(route, logprobs=2, max_tokens=4)
        found = [len(top) for top in body["choices"][0]["logprobs"]["top_logprobs"]]
        api.refuses(route, "logprobs", 21)
    assert found == [2] * 4
    assert api.post(route, max_tokens=4)["choices"][0]["logprobs"] is None


@check("stream", CHAT, COMPLETIONS)
def _stream(api: Api, route: str) -> None:
    choices = [event["choices"][0] for event in api.events(route)]
    pieces = [choice["text"] if "text" in choice else choice["delta"].get("content", "") for choice in choices]
    assert "".join(pieces) == api.text(route)


@check("stream_options", CHAT, COMPLETIONS)
def _usage_in_streams(api: Api, route: str) -> None:
    events = api.events(route, stream_options={"include_usage": True, "include_obfuscation": False})
    assert events[-1]["choices"] == []
    assert written(events[-1]) == written(api.post(route))
    api.refuses(route, "stream_options", {"include_usage": True})


@check("structured_outputs", CHAT, COMPLETIONS)
def _structured_outputs(api: Api, route: str) -> None:
    assert {*json.loads(api.text(route, structured_outputs={"json": SCHEMA}, max_tokens=80))} == {"a", "b"}
    assert re.fullmatch("[0-9]{3}", api.text(route, structured_outputs={"regex": "[0-9]{3}"}))
    assert api.text(route, structured_outputs={"choice": ["left", "right"]}) in ("left", "right")
    assert api.text(route, structured_outputs={"grammar": 'start: "so " ("yes" | "no")'})[3:] in ("yes", "no")


@check("prompt_cache_key", CHAT, COMPLETIONS)
def _cache_key(api: Api, route: str) -> None:
    story = "Once upon a time there was a sea. " * 10  # short prefixes are not worth keeping
    long = {"prompt": story} if route == COMPLETIONS else {"messages": [{"role": "user", "content": story}]}
    body = api.post(route, prompt_cache_key="x", max_tokens=4, **long)
    assert texts(body)[0] == api.text(route, max_tokens=4, **long)
    assert "x_mobilemoe" not in body
    again = api.post(route, prompt_cache_key="y", max_tokens=4, **long)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0, "prefixes are found without it"


@check("x_mobilemoe", CHAT, COMPLETIONS)
def _routing(api: Api, route: str) -> None:
    body = api.post(route, x_mobilemoe={"routing": True}, max_tokens=4)
    experts = body["choices"][0]["x_mobilemoe"]["routing"]
    shape = api.http.get("/v1/models/nano").json()["x_mobilemoe"]
    assert [len(layers) for layers in experts] == [shape["layers"]] * 4
    assert {len(layer) for layer in itertools.chain(*experts)} <= {0, shape["experts_per_token"]}


@check("messages", CHAT)
def _messages(api: Api, route: str) -> None:
    told = [{"role": "developer", "content": "Answer in one word."}, *USER]
    assert api.text(route, messages=told) == api.text(route, messages=[told[0] | {"role": "system"}, *USER])
    assert api.text(route, messages=told) != api.text(route)
    parts = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    assert api.text(route, messages=parts) == api.text(route)
    api.refuses(route, "messages", [])


@check("response_format", CHAT)
def _response_format(api: Api, route: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA, "strict": True}}
    assert {*json.loads(api.text(route, response_format=form))} == {"a", "b"}
    assert api.text(route, response_format={"type": "json_object"}, max_tokens=20).lstrip().startswith("{")
    assert api.text(route, response_format={"type": "text"}) == api.text(route)
    api.refuses(route, "response_format", {"type": "xml"})


def _function(strict: bool = True) -> dict[str, Any]:
    return {"name": "add", "description": "Adds two numbers.", "parameters": SCHEMA, "strict": strict}


@check("tools", CHAT)
@check("tool_choice", CHAT)
@check("parallel_tool_calls", CHAT)
def _tools(api: Api, route: str) -> None:
    tools = [{"type": "function", "function": _function()}]
    for choice in ("required", {"type": "function", "function": {"name": "add"}}):
        body = api.post(route, tools=tools, tool_choice=choice, parallel_tool_calls=False)
        assert body["choices"][0]["finish_reason"] == "tool_calls"
        [call] = body["choices"][0]["message"]["tool_calls"]
        assert call["function"]["name"] == "add"
        assert {*json.loads(call["function"]["arguments"])} == {"a", "b"}
    answer = api.post(route, tools=tools, tool_choice="none")["choices"][0]
    assert answer["finish_reason"] == "stop"
    assert "tool_calls" not in answer["message"]
    turns = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "35"},
    ]
    assert api.post(route, messages=turns, tools=tools, tool_choice="auto")
    api.refuses(route, "tools", tools * 129)


@check("prompt", COMPLETIONS)
def _prompt(api: Api, route: str) -> None:
    ids = api.http.post("/tokenize", json={"prompt": "Once upon a time"}).json()["tokens"]
    whole = api.text(route)
    assert api.text(route, prompt=ids) == whole
    assert texts(api.post(route, prompt=["Once upon a time"] * 2)) == texts(api.post(route, prompt=[ids, ids]))
    api.refuses(route, "prompt", [])


@check("best_of", COMPLETIONS)
def _best_of(api: Api, route: str) -> None:
    body = api.post(route, best_of=3, temperature=1, max_tokens=5)
    assert (len(texts(body)), written(body)) == (1, 15)
    api.refuses(route, "best_of", 1, n=2)


@check("echo", COMPLETIONS)
def _echo(api: Api, route: str) -> None:
    assert api.text(route, echo=True) == "Once upon a time" + api.text(route)
    scored = api.post(route, echo=True, max_tokens=0, logprobs=0)["choices"][0]
    assert all(logprob < 0 for logprob in scored["logprobs"]["token_logprobs"][1:])


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
    tools = [{"type": "function", **_function()}]
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
