"""A real server process on the bundled model, asked by the official `openai` client and by plain HTTP."""

import json
import shutil
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from servers import KEY, SLOW, Server, running

QUESTION = [{"role": "user", "content": "What is 58 minus 23?"}]
STORY = "Once upon a time"


SERVER_OPTIONS = ("--parallel", "4", "--queue", "8")


def ask(server: Server, **fields):
    return server.client.chat.completions.create(**{"model": "nano", "messages": QUESTION, "temperature": 0} | fields)


def tell(server: Server, **fields):
    return server.client.completions.create(**{"model": "nano", "prompt": STORY, "temperature": 0} | fields)


def raw_story(server: Server, **fields) -> socket.socket:
    """A request for a long story, sent by hand: the caller decides when it hangs up."""
    body = json.dumps({"model": "nano", "prompt": STORY, "max_tokens": 2000} | fields)
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    return connection


@pytest.fixture(scope="module")
def slow_server():
    """One whose texts do not end before a test has looked at them, however little of the machine the test gets."""
    with running(*SERVER_OPTIONS, before=SLOW) as server:
        yield server


def test_a_chat_has_the_same_text_as_the_verb_chat(server, nano):
    answer = ask(server)
    assert answer.choices[0].message.content == nano.generate(messages=QUESTION)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == len(nano.encode(messages=QUESTION))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_completion_has_the_same_text_as_the_verb_run(server, nano):
    answer = tell(server, max_tokens=40)
    assert answer.choices[0].text == nano.generate(STORY, max_new_tokens=40)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 40


def test_neighbours_do_not_change_a_greedy_text(server, nano):
    prompts = [STORY, "An economy is", "def add(a, b):", "The old man", "In the beginning", "A list of"]
    with ThreadPoolExecutor(6) as threads:
        texts = list(threads.map(lambda prompt: tell(server, prompt=prompt, max_tokens=24).choices[0].text, prompts))
    assert texts == [nano.generate(prompt, max_new_tokens=24) for prompt in prompts]


def test_the_pieces_of_a_stream_join_to_the_whole(server):
    events = list(ask(server, stream=True, stream_options={"include_usage": True}))
    whole = ask(server)
    assert "".join(event.choices[0].delta.content or "" for event in events[:-1]) == whole.choices[0].message.content
    assert events[0].choices[0].delta.role == "assistant"
    assert [event.choices[0].finish_reason for event in events[:-1] if event.choices[0].finish_reason] == ["stop"]
    assert events[-1].choices == []
    assert events[-1].usage.total_tokens == whole.usage.total_tokens
    assert all(event.usage is None for event in ask(server, stream=True))


def test_several_prompts_and_several_answers_come_in_order(server, nano):
    answer = tell(server, prompt=[nano.encode(STORY), nano.encode("An economy is")], n=2, max_tokens=8)
    story, economy = (nano.generate(prompt, max_new_tokens=8) for prompt in (STORY, "An economy is"))
    assert [choice.text for choice in answer.choices] == [story, story, economy, economy]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    streamed = [""] * 4
    for event in tell(server, prompt=[STORY, "An economy is"], n=2, max_tokens=8, stream=True):
        streamed[event.choices[0].index] += event.choices[0].text
    assert streamed == [story, story, economy, economy]


def test_a_stop_text_ends_the_answer_before_it(server):
    whole = ask(server).choices[0].message.content
    for stop in (" 38", ["nowhere", " 38"]):
        answer = ask(server, stop=stop)
        assert answer.choices[0].message.content == whole[: whole.index(" 38")]
        assert answer.choices[0].finish_reason == "stop"
        pieces = ask(server, stop=stop, stream=True)
        assert "".join(event.choices[0].delta.content or "" for event in pieces) == whole[: whole.index(" 38")]


def test_a_seed_makes_sampling_repeatable_and_n_answers_differ(server):
    def texts(seed, n=3):
        answer = tell(server, temperature=1, seed=seed, n=n, max_tokens=20)
        return [choice.text for choice in answer.choices]

    first = texts(7)
    assert texts(7) == first
    assert len({*first}) == 3
    assert texts(7, n=1) == first[:1]
    assert texts(-1) != first


def test_the_limit_of_tokens_has_two_names(server):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = ask(server, **{name: 3})
        assert answer.usage.completion_tokens == 3
        assert answer.choices[0].finish_reason == "length"


def test_logprobs_are_those_of_the_model(server, nano):
    stream = nano.stream(messages=QUESTION, logprobs=2)
    text = "".join(stream)
    expected = [choice for choice in stream.choices if choice.token not in nano.stop_ids]
    answer = ask(server, logprobs=True, top_logprobs=2)
    found = answer.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in found).decode() == text
    assert [token.logprob for token in found] == pytest.approx([choice.logprob for choice in expected])
    assert [[top.logprob for top in token.top_logprobs] for token in found] == [
        pytest.approx([logprob for _, logprob in choice.top]) for choice in expected
    ]
    streamed = [
        token for event in ask(server, logprobs=True, top_logprobs=2, stream=True)
        if event.choices[0].logprobs for token in event.choices[0].logprobs.content
    ]  # fmt: skip
    assert streamed == found


def test_logprobs_of_a_completion_know_their_places_in_the_text(server):
    choice = tell(server, logprobs=1, max_tokens=12).choices[0]
    assert "".join(choice.logprobs.tokens) == choice.text
    for token, offset, top in zip(
        choice.logprobs.tokens, choice.logprobs.text_offset, choice.logprobs.top_logprobs, strict=True
    ):
        assert choice.text.startswith(token, offset)
        assert [*top] == [token]


def test_a_bias_of_100_decides_and_system_and_developer_are_one_role(server, nano):
    token = nano.tokenizer.encode(" the")[0]
    assert tell(server, logit_bias={str(token): 100}, max_tokens=3).choices[0].text == " the the the"
    texts = {
        ask(server, messages=[{"role": role, "content": "Answer in one word."}, *QUESTION]).choices[0].message.content
        for role in ("system", "developer")
    }
    assert len(texts) == 1


def test_what_is_ignored_is_listed(server):
    answer = ask(server, user="somebody", store=False, max_tokens=2)
    assert answer.x_mobilemoe == {"warnings": ["store is ignored", "user is ignored"]}
    assert not hasattr(ask(server, max_tokens=2), "x_mobilemoe")


def test_the_models_are_listed(server):
    assert [model.id for model in server.client.models.list()] == ["nano"]
    assert server.client.models.retrieve("nano").id == "nano"
    with pytest.raises(openai.NotFoundError):
        server.client.models.retrieve("gpt-5")


def test_tokenize_and_detokenize_are_each_others_inverse(server, nano):
    found = server.http.post("/tokenize", json={"prompt": "Grüße, 世界"}).json()
    assert found["tokens"] == nano.encode("Grüße, 世界")
    assert found["count"] == len(found["tokens"])
    plain = server.http.post("/tokenize", json={"prompt": "Grüße, 世界", "add_special_tokens": False}).json()["tokens"]
    assert server.http.post("/detokenize", json={"tokens": plain}).json() == {"prompt": "Grüße, 世界"}
    chat = server.http.post("/tokenize", json={"messages": QUESTION}).json()
    assert chat["tokens"] == nano.encode(messages=QUESTION)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x " * 3000}]}, None),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, None),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": "2"}, "n"),
        ({"n": 129}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": 2**65}, "seed"),
        ({"stop": ""}, None),
        ({"stop": ["x"] * 17}, "stop"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 1e9}}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"max_token": 3}, "max_token"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"best_of": 3}, "best_of"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_a_wrong_body_is_a_400_in_openai_s_shape(server, change, param):
    body = json.dumps({"model": "nano", "messages": QUESTION} | change)
    response = server.http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert {*error} == {"message", "type", "param", "code"}
    assert error["param"] == param


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"[" * 100_000, b'{"model": "nano", "prompt": "\\ud800"}'],
    ids=range(8),
)
def test_bytes_that_are_no_request_are_a_400_too(server, body):
    response = server.http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_other_errors_have_the_shape_too(server):
    with pytest.raises(openai.NotFoundError) as missing:
        ask(server, model="gpt-5")
    assert missing.value.code == "model_not_found"
    for method, path, status in (("GET", "/nowhere", 404), ("DELETE", "/v1/models", 405)):
        response = server.http.request(method, path)
        assert response.status_code == status
        assert response.json()["error"]["message"]


def test_a_body_beyond_the_limit_is_refused(server):
    large = b'{"model": "' + b"x" * (5 * 2**20) + b'"}'
    headers = {"Content-Type": "application/json"}
    assert server.http.post("/v1/completions", content=large, headers=headers).status_code == 413

    def parts():
        yield from (large[at : at + 65536] for at in range(0, len(large), 65536))

    response = server.http.post("/v1/completions", content=parts(), headers=headers)
    assert response.status_code == 413
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer é"])
def test_every_endpoint_but_health_needs_the_key(server, header):
    headers = {} if header is None else {"Authorization": header.encode()}
    with httpx.Client(base_url=server.root, headers=headers) as stranger:
        assert stranger.get("/health").status_code == 200
        for path in ("/v1/models", "/openapi.json", "/nowhere"):
            assert stranger.get(path).status_code == 401
        response = stranger.post("/v1/chat/completions", json={})
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_place(slow_server, stream):
    server = slow_server
    server.wait_for(running=0, waiting=0)
    connections = [raw_story(server, stream=stream) for _ in range(5)]
    server.wait_for(running=4, waiting=1)
    for connection in connections:
        connection.close()
    server.wait_for(running=0, waiting=0)  # the whole texts would take three minutes


def test_a_full_queue_is_a_429_that_says_when_to_come_again(slow_server):
    server = slow_server
    server.wait_for(running=0, waiting=0)
    connections = [raw_story(server) for _ in range(4)]
    server.wait_for(running=4)
    connections += [raw_story(server) for _ in range(8)]
    server.wait_for(running=4, waiting=8)
    with pytest.raises(openai.RateLimitError) as refused:
        ask(server)
    assert 1 <= int(refused.value.response.headers["Retry-After"]) < 60
    for connection in connections:
        connection.close()
    server.wait_for(running=0, waiting=0)
    assert ask(server, max_tokens=2).usage.completion_tokens == 2


def test_a_request_for_many_texts_does_not_hold_up_a_small_one(slow_server):
    server = slow_server
    server.wait_for(running=0, waiting=0)
    many = raw_story(server, n=128, max_tokens=30)
    server.wait_for(running=4, waiting=1)
    assert ask(server, max_tokens=2).usage.completion_tokens == 2
    assert server.health()["waiting"] == 1, "the many were done before"
    many.close()


def test_sigterm_finishes_what_was_begun_and_refuses_the_rest():
    with running("--drain-seconds", "600", before=SLOW) as server:
        stream = iter(tell(server, max_tokens=300, stream=True))
        pieces = [next(stream).choices[0]]
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(status="draining")
        with pytest.raises(openai.APIStatusError) as refused:
            tell(server)
        assert refused.value.status_code == 503
        pieces += [event.choices[0] for event in stream]
        assert pieces[-1].finish_reason == "length"
        assert server.process.wait(60) == 0


def test_without_a_key_other_names_of_this_machine_are_refused():
    """A web page could let a name of its own point to 127.0.0.1."""
    with running(key=None) as server:
        assert server.client.models.list().data[0].id == "nano"
        for host in ("evil.example", "localhost.evil.example", "[", ""):
            assert server.http.get("/v1/models", headers={"Host": host}).status_code == 403, host
        for host in ("localhost:1", "127.0.0.1", "[::1]:8080"):
            assert server.http.get("/v1/models", headers={"Host": host}).status_code == 200, host


def test_a_second_signal_ends_the_server_at_once():
    with running("--drain-seconds", "600", before=SLOW) as server:
        connection = raw_story(server, n=8)
        server.wait_for(running=8)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(status="draining")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0, "the texts would take minutes"
        connection.close()


def test_a_drain_has_an_end():
    with running("--drain-seconds", "0.2", before=SLOW) as server:
        stream = iter(tell(server, max_tokens=2000, n=8, stream=True))
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="ended before"):
            list(stream)
        assert server.process.wait(60) == 0


def test_a_prompt_that_is_read_back_has_no_more_time_than_another():
    with running("--request-seconds", "0.1") as server:
        long = ["Once upon a time there was a sea. " * 40] * 100
        with pytest.raises(openai.APIStatusError) as refused:
            tell(server, prompt=long, echo=True, max_tokens=0, logprobs=20)
        assert (refused.value.status_code, refused.value.code) == (504, "deadline_exceeded")


@pytest.mark.parametrize("damaged", [False, True])
def test_a_model_without_a_usable_template_says_so_and_names_no_folder(tmp_path, nano, damaged):
    folder = shutil.copytree(nano.folder, tmp_path / "secret" / "base")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if damaged:
        (folder / "chat_template.jinja").write_text("{% if")
    with running(model=str(folder)) as server:
        assert server.client.models.list().data[0].id == "base"
        with pytest.raises(openai.BadRequestError) as refused:
            ask(server, model="base")
        assert refused.value.code == "no_chat_template"
        assert "secret" not in refused.value.response.text
        assert tell(server, model="base", max_tokens=2).usage.completion_tokens == 2


def test_a_model_answers_to_its_aliases():
    with running("--alias", "gpt-5.5", "--alias", "small") as server:
        assert [model.id for model in server.client.models.list()] == ["nano", "gpt-5.5", "small"]
        assert server.client.models.retrieve("small").id == "small"
        texts = {tell(server, model=name, max_tokens=8).choices[0].text for name in ("nano", "gpt-5.5", "small")}
        assert len(texts) == 1
