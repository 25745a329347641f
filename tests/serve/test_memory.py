"""A server computes no prompt twice, stays within its memory, and keeps conversations over a restart."""

import random
import signal
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

import mobilemoe
from memory_limits import named_limit
from mobilemoe.engine import Engine
from mobilemoe.hub import ASSETS
from mobilemoe.sampling import Sampling
from mobilemoe.serve.scheduler import Scheduler, Text, Ticket
from servers import running

ASK = [
    {"role": "system", "content": "You are a patient teacher. " * 12},
    {"role": "user", "content": "What is 58 - 23?"},
]


def chat(server, messages=ASK, **fields):
    return server.client.chat.completions.create(**{"model": "nano", "messages": messages, "temperature": 0} | fields)


def cached(answer) -> int:
    return answer.usage.prompt_tokens_details.cached_tokens


def test_each_turn_of_a_chat_computes_only_what_is_new(nano):
    with running() as server:
        first = chat(server, prompt_cache_key="a conversation")
        assert cached(first) == 0
        assert not hasattr(first, "x_mobilemoe")
        said = first.choices[0].message.content
        longer = [*ASK, {"role": "assistant", "content": said}, {"role": "user", "content": "And 58 + 23?"}]
        second = chat(server, longer)
        assert cached(second) >= first.usage.prompt_tokens
        assert second.choices[0].message.content == nano.generate(messages=longer)
        *_, last = chat(server, longer, stream=True, stream_options={"include_usage": True})
        assert last.usage.prompt_tokens_details.cached_tokens == second.usage.prompt_tokens - 1
        other = [{"role": "user", "content": "Who wrote Moby-Dick?"}]
        assert chat(server, other).choices[0].message.content == nano.generate(messages=other)
        assert server.metric("prefix_hits_total") == 2
        assert server.metric("prefix_hit_tokens_total") == cached(second) + second.usage.prompt_tokens - 1
        assert server.metric("kept_bytes") > 0
        assert server.metric("running_bytes") == 0


def test_several_answers_read_their_prompt_once(nano):
    with running() as server:
        answer = chat(server, n=4)
        assert {choice.message.content for choice in answer.choices} == {nano.generate(messages=ASK)}
        assert cached(answer) == 0
        assert server.metric("prefix_hit_tokens_total") == 3 * (answer.usage.prompt_tokens - 1)


def test_texts_that_begin_alike_at_the_same_time_do_not_change_each_other(nano):
    prompts = [[*ASK[:1], {"role": "user", "content": f"What is {number} + 5?"}] for number in range(12)]
    with running("--parallel", "5") as server, ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda messages: chat(server, messages, max_tokens=24), prompts * 2))
    expected = [nano.generate(messages=messages, max_new_tokens=24) for messages in prompts]
    assert [answer.choices[0].message.content for answer in answers] == expected * 2


def least_memory(*options: str) -> int:
    """The smallest --max-memory that a server of nano starts with."""
    command = [sys.executable, "-c", "from mobilemoe.cli.main import main; main()", "serve", "nano", "--port", "0"]
    refused = subprocess.run([*command, *options, "--max-memory", "1KB"], capture_output=True, text=True)
    return named_limit(refused.stderr)


def test_what_does_not_fit_now_waits_and_what_never_will_is_a_400(nano):
    fields = {"max_tokens": 100, "logit_bias": {str(token): -100 for token in nano.stop_ids}, "temperature": 0}
    wide = ("--kv", "fp32", "--activations", "fp32", "--threads", "1")
    with (
        running("--max-memory", str(least_memory(*wide) + 12_000_000), *wide[:4]) as server,
        ThreadPoolExecutor(6) as threads,
    ):
        longest = server.http.post("/tokenize", json={"prompt": "A"}).json()["max_model_len"]
        assert 256 <= longest < nano.config.max_position_embeddings
        length, peak = longest // 2 - 110, 0
        answers = [
            threads.submit(server.client.completions.create, model="nano", prompt=[300 + at] * length, **fields)
            for at in range(6)
        ]
        while not all(answer.done() for answer in answers):
            peak = max(peak, server.health()["running"])
        assert 1 <= peak <= 2
        assert [answer.result().usage.completion_tokens for answer in answers] == [100] * 6
        assert server.metric("prefix_evictions_total") > 0
        with pytest.raises(openai.BadRequestError, match="that there is memory for") as refused:
            server.client.completions.create(model="nano", prompt=[300] * (longest + 1))
        assert refused.value.code == "context_length_exceeded"


def test_a_conversation_survives_a_restart(nano, tmp_path):
    place, keep = tmp_path / "sessions", ("--session-dir", str(tmp_path / "sessions"))
    with running(*keep) as server:
        first = chat(server)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
    (file,) = place.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with running(*keep) as server:
        assert server.metric("saved_sessions") == 1
        again = chat(server)
        assert cached(again) == again.usage.prompt_tokens - 1
        assert again.choices[0].message.content == first.choices[0].message.content


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--max-memory", "much"), "--max-memory is 'much'"),
        (("--max-memory", "10KB"), "--max-memory is 0.01 MB, but the process needs at least"),
        (("--session-dir", "/dev/null"), "cannot keep sessions"),
    ],
)
def test_what_cannot_be_is_one_line(fails, options, words):
    assert words in fails(2, "serve", "nano", "--port", "0", *options)


def test_requests_that_are_cancelled_while_memory_is_short_give_all_of_it_back(nano, tmp_path):
    """200 requests that begin alike at random, a third of them cancelled, where two or three fit at once."""
    choose, total = random.Random(1), 3 * Engine(ASSETS / "nano", threads=1).kv_bytes(192) + 1000
    ready, ended = threading.Event(), threading.Event()

    def load():
        model = mobilemoe.load("nano", threads=1)
        model.engine.text_bytes = total
        return model

    scheduler = Scheduler(
        load,
        parallel=6,
        queue=300,
        session_dir=tmp_path / "sessions",
        on_ready=ready.set,
        on_end=ended.set,
    )
    scheduler.start()
    assert ready.wait(20)
    starts = [[choose.randrange(16_000) for _ in range(120)] for _ in range(4)]
    answered: dict[int, list] = {number: [] for number in range(200)}
    tickets = []
    for number, arrived in answered.items():
        ids = [*choose.choice(starts)[: choose.randrange(1, 121)], *(choose.randrange(16_000) for _ in range(9))]
        tokens = choose.randrange(1, 30)
        text = Text(0, ids, nano.writer(tokens), tokens, Sampling(temperature=0), None)
        tickets.append(Ticket([text], arrived.append))
        scheduler.submit(tickets[-1])
        if number % 3 == 0:
            time.sleep(choose.random() / 50)
            scheduler.cancel(choose.choice(tickets))
    scheduler.drain(60)
    assert ended.wait(60)
    assert scheduler.fault is None
    for ticket, arrived in zip(tickets, answered.values(), strict=True):
        assert ticket.over or arrived[-1].finished, arrived
    stats = scheduler.prefix_stats
    assert stats.running_bytes == 0
    assert 0 < stats.bytes <= total
    assert stats.hits > 20
    assert stats.saved_sessions == len([*(tmp_path / "sessions").iterdir()]) > 3
