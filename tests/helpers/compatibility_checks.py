"""What the rows of docs/serving.md promise: the routes, what all protocols share, chats and completions."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

from compatibility_api import (
    CHAT,
    COMPLETIONS,
    MESSAGES,
    QUESTION,
    RESPONSES,
    SCHEMA,
    USER,
    Api,
    check,
    function,
    texts,
    written,
)


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
    asked = {COMPLETIONS: {"prompt": "Once upon a time"}, RESPONSES: {"input": story}}
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
    def changes(**penalty: Any) -> bool:
        """Whether one of the drawn texts, in which some words come again, becomes another one."""
        drawn = ({"seed": seed} | _open(route) for seed in range(8))
        return any(api.text(route, **fields) != api.text(route, **fields, **penalty) for fields in drawn)

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
    assert {*json.loads(api.text(route, structured_outputs={"json": SCHEMA}, max_tokens=300))} == {"a", "b"}
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


@check("tools", CHAT)
@check("tool_choice", CHAT)
@check("parallel_tool_calls", CHAT)
def _tools(api: Api, route: str) -> None:
    tools = [{"type": "function", "function": function()}]
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
    body = api.post(route, best_of=3, temperature=1, seed=1, max_tokens=5)
    assert (len(texts(body)), written(body)) == (1, 15)
    api.refuses(route, "best_of", 1, n=2)


@check("echo", COMPLETIONS)
def _echo(api: Api, route: str) -> None:
    assert api.text(route, echo=True) == "Once upon a time" + api.text(route)
    scored = api.post(route, echo=True, max_tokens=0, logprobs=0)["choices"][0]
    assert all(logprob < 0 for logprob in scored["logprobs"]["token_logprobs"][1:])
