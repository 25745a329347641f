"""Answers are held to a format: asked for by the official `openai` client, and by vLLM's fields in its `extra_body`."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import openai
import pydantic
import pytest

from mobilemoe.serve.errors import ApiError
from mobilemoe.serve.structure import Grammars, grammar, json_rule
from places import ROOT
from schemas import fits
from servers import running

QUESTION = [{"role": "user", "content": "What is 58 minus 23?"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "answer": {"type": "integer", "minimum": 0, "maximum": 99},
        "sure": {"type": "boolean"},
        "why": {"type": "string", "maxLength": 40},
    },
    "required": ["answer", "sure", "why"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server():
    with running("--parallel", "4") as server:
        yield server


def ask(server, **fields):
    wanted = {"model": "nano", "messages": QUESTION, "temperature": 0, "max_tokens": 120} | fields
    return server.client.chat.completions.create(**wanted)


def content(server, **fields) -> str:
    choice = ask(server, **fields).choices[0]
    assert choice.finish_reason == "stop"
    return choice.message.content


def by_schema(schema, strict=True) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "asked", "schema": schema, "strict": strict}}


def held_to(server, fields=None, **outputs) -> str:
    return content(server, extra_body={"structured_outputs": outputs}, **fields or {})


def refused(ask, param: str) -> str:
    with pytest.raises(openai.BadRequestError) as caught:
        ask()
    assert caught.value.param == param
    return caught.value.body["message"]


class Step(pydantic.BaseModel):
    explanation: str = pydantic.Field(max_length=40)  # whether a model ends a text by itself is its own affair
    output: Literal["small", "large"]


class Reasoning(pydantic.BaseModel):
    steps: list[Step] = pydantic.Field(max_length=2)
    final_answer: int = pydantic.Field(le=99, ge=0)


def test_the_client_parses_answers_into_pydantic_models(server):
    answer = server.client.chat.completions.parse(
        model="nano", messages=QUESTION, response_format=Reasoning, temperature=0, max_tokens=400
    )
    assert isinstance(answer.choices[0].message.parsed, Reasoning)


def test_an_answer_fits_its_schema_at_any_temperature(server):
    for temperature in (0, 1, 2):
        text = content(server, response_format=by_schema(SCHEMA), temperature=temperature, seed=3)
        assert fits(json.loads(text), SCHEMA)


def ends(nano) -> dict:
    """A bias that ends an object as soon as it may end."""
    [token] = nano.tokenizer.encode("}")
    return {"logit_bias": {str(token): 100}}


def test_a_json_object_is_one(server, nano):
    assert isinstance(json.loads(content(server, response_format={"type": "json_object"}, **ends(nano))), dict)
    assert content(server, response_format={"type": "text"}) == content(server)


def test_nothing_in_a_request_breaks_the_structure(server, nano):
    wanted = nano.tokenizer.encode(" the")[0]
    fields = {"logit_bias": {str(token): 100 for token in (wanted, *nano.stop_ids)}, "presence_penalty": 2}
    assert fits(json.loads(content(server, response_format=by_schema(SCHEMA), **fields)), SCHEMA)


def test_a_limit_of_tokens_cuts_a_structure_and_says_so(server):
    choice = ask(server, response_format=by_schema(SCHEMA), max_tokens=5).choices[0]
    assert choice.finish_reason == "length"


def test_a_structure_does_not_change_with_its_neighbours(server):
    alone = [content(server, response_format=by_schema(SCHEMA)), content(server), held_to(server, regex="[a-z]{9}")]
    with ThreadPoolExecutor(9) as threads:
        asked = [
            threads.submit(content, server, response_format=by_schema(SCHEMA)),
            threads.submit(content, server),
            threads.submit(held_to, server, regex="[a-z]{9}"),
            *(threads.submit(content, server, response_format=by_schema(SCHEMA), seed=n, top_p=0.9) for n in range(6)),
        ]
        assert [each.result() for each in asked[:3]] == alone


def test_a_stream_and_several_answers_are_held_to_it_too(server):
    answer = ask(server, response_format=by_schema(SCHEMA), n=3, temperature=1, seed=1)
    texts = [choice.message.content for choice in answer.choices]
    assert len({*texts}) == 3
    assert all(fits(json.loads(text), SCHEMA) for text in texts)
    events = ask(server, response_format=by_schema(SCHEMA), stream=True)
    assert "".join(event.choices[0].delta.content or "" for event in events) == content(
        server, response_format=by_schema(SCHEMA)
    )


def test_log_probabilities_are_those_of_the_model_itself(server, nano):
    answer = ask(server, response_format=by_schema(SCHEMA), logprobs=True, top_logprobs=1)
    first = answer.choices[0].logprobs.content[0]
    stream = nano.stream(messages=QUESTION, logprobs=1, max_new_tokens=1)
    next(stream)
    assert first.token.startswith("{")
    assert first.top_logprobs[0].logprob == pytest.approx(stream.choices[0].top[0][1])
    assert first.logprob < first.top_logprobs[0].logprob


def test_vllms_ways_to_say_it(server, nano):
    assert held_to(server, choice=["yes", "no"]) in ("yes", "no")
    assert re.fullmatch(r"[0-9]{3}-(ab){1,9}", held_to(server, regex="[0-9]{3}-(ab){1,9}"))
    assert held_to(server, grammar='start: "x" NUMBER "y"\nNUMBER: /[0-9]{2}/')[::3] == "xy"
    assert fits(json.loads(held_to(server, json=SCHEMA)), SCHEMA)
    assert isinstance(json.loads(held_to(server, ends(nano), json_object=True)), dict)
    text = server.client.completions.create(
        model="nano", prompt="Is it true? ", temperature=0, extra_body={"structured_outputs": {"choice": ["aye", "no"]}}
    )
    assert text.choices[0].text in ("aye", "no")


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        ({"oneOf": [{"type": "object"}, {"type": "object"}]}, "oneOf"),
        ({"type": "string", "format": "klingon"}, "klingon"),
    ],
)
def test_what_cannot_be_kept_is_refused_if_strict_and_else_named(server, schema, says):
    message = refused(lambda: ask(server, response_format=by_schema(schema)), "response_format")
    assert says in message
    assert "\n" not in message
    answer = ask(server, response_format=by_schema(schema, strict=False), max_tokens=5)
    [warning] = answer.x_mobilemoe["warnings"]
    assert says in warning


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "("},
        {"type": "string", "pattern": "^(?!a)"},
        {"$ref": "#/$defs/nowhere"},
        {"$ref": "http://127.0.0.1/schema"},
        {"type": 5},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        {"type": "number", "minimum": 5, "maximum": 4},
    ],
)
def test_a_schema_that_is_none_is_one_sentence(server, schema):
    for strict in (True, False):
        body = json.dumps({"model": "nano", "messages": QUESTION, "response_format": by_schema(schema, strict)})
        headers = {"Content-Type": "application/json"}
        response = server.http.post("/v1/chat/completions", content=body, headers=headers)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "response_format"
        assert "\n" not in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "outputs",
    [{}, {"regex": "a", "choice": ["b"]}, {"regex": "("}, {"grammar": "start: nothing"}, {"choice": []}, {"json": 5}],
)
def test_other_ways_to_be_wrong_are_refused(server, outputs):
    refused(lambda: held_to(server, **outputs), "structured_outputs")


def test_two_structures_at_a_time_are_refused(server):
    fields = {"response_format": {"type": "json_object"}, "extra_body": {"structured_outputs": {"choice": ["a"]}}}
    refused(lambda: ask(server, **fields), "structured_outputs")


def test_the_examples_of_the_documents_run(server, capsys):
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    for heading in ("## Answers in a form", "## Tools"):
        section = text.partition(f"{heading}\n")[2]
        exec(section.partition("```python\n")[2].partition("```")[0], {"client": server.client})
        assert capsys.readouterr().out


def test_whitespace_is_bounded(nano):
    structure = Grammars(nano.tokenizer, nano.config.vocab_size, nano.stop_ids).compile(
        grammar(f"start: {json_rule({'type': 'array', 'items': {'type': 'integer'}})}"), "response_format"
    )

    for blank in ("", " ", "\n", "\n" + 20 * " ", "\n\t\t"):
        assert _takes(nano, structure, f"[{blank}1,{blank}2]")
    for blank in ("  ", "\n\n", "\n" + 21 * " ", "\t"):
        assert not _takes(nano, structure, f"[{blank}1")


def _takes(nano, structure, text: str) -> bool:
    ids = nano.tokenizer.encode(text)
    return structure.matcher.deep_copy().try_consume_tokens(ids) == len(ids)


def test_ids_that_the_tokenizer_has_not_are_never_allowed(nano):
    tokenizer = nano.tokenizer
    size = tokenizer.vocab_size + 100
    guide = Grammars(tokenizer, size, nano.stop_ids).compile("start: /(.|\\n)*/", "grammar").guide()
    for text in ("", "some text"):
        for token in tokenizer.encode(text):
            guide.take(token)
        bits = [bool(word >> place & 1) for word in guide.allowed().tolist() for place in range(32)]
        allowed = {token for token, bit in enumerate(bits[:size]) if bit}
        assert not any(bits[tokenizer.vocab_size :])
        assert allowed & tokenizer.special_ids == nano.stop_ids


def test_a_grammar_beyond_the_limits_ends_its_request_only(nano):
    grammars = Grammars(nano.tokenizer, nano.config.vocab_size, nano.stop_ids)
    guide = grammars.compile('start: "a"', "grammar").guide()
    guide.take(nano.tokenizer.encode("b")[0])
    with pytest.raises(ApiError) as caught:
        guide.allowed()
    assert caught.value.status_code == 400
