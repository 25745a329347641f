"""The scheduler by itself: its states, and whom a failure reaches."""

import threading
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

import mobilemoe
from mobilemoe.engine.member import Member
from mobilemoe.errors import CheckpointError, UsageError
from mobilemoe.sampling import Sampling
from mobilemoe.serve import scheduler as scheduler_module
from mobilemoe.serve.app import create_app
from mobilemoe.serve.errors import ApiError
from mobilemoe.serve.scheduler import Scheduler, Text, Ticket


@pytest.fixture
def model():
    return mobilemoe.load("nano", threads=1)


class Running:
    """A scheduler whose model is loaded when `may_load` is set."""

    def __init__(self, load, *, parallel=2, queue=8, **options):
        self.may_load, self.ready, self.ended = threading.Event(), threading.Event(), threading.Event()

        def wait_and_load():
            self.may_load.wait()
            return load()

        self.scheduler = Scheduler(
            wait_and_load,
            parallel=parallel,
            queue=queue,
            on_ready=self.ready.set,
            on_end=self.ended.set,
            **options,
        )
        self.scheduler.start()

    def open(self):
        self.may_load.set()
        assert self.ready.wait(20)
        return self.scheduler


class Asked:
    def __init__(self, model, prompts=("Once upon a time",), tokens=5, **sampling):
        self.steps, self.fault, self.done, self.left = [], None, threading.Event(), len(prompts)
        encoded = [model.encode(prompt) for prompt in prompts]
        texts = [
            Text(index, ids, model.writer(tokens), tokens, Sampling(temperature=0, **sampling), None)
            for index, ids in enumerate(encoded)
        ]
        self.ticket = Ticket(texts, self.take)

    def take(self, arrived):
        if isinstance(arrived, Exception):
            self.fault = arrived
        else:
            self.steps.append(arrived)
            self.left -= arrived.finished is not None
        if self.fault or not self.left:
            self.done.set()


def test_the_states_are_loading_ready_draining(model):
    running = Running(lambda: model)
    assert running.scheduler.state == "loading"
    with pytest.raises(ApiError) as early:
        _ = running.scheduler.model
    assert early.value.status_code == 503
    scheduler = running.open()
    assert scheduler.state == "ready"
    scheduler.drain(20)
    assert scheduler.state == "draining"
    assert running.ended.wait(20)
    with pytest.raises(ApiError):
        scheduler.submit(Asked(model).ticket)
    assert scheduler.fault is None


def test_while_the_model_is_loaded_health_says_so_and_requests_are_to_come_again(model):
    running = Running(lambda: model)
    app = create_app(running.scheduler, "nano", api_key=None, local_only=True)
    client = TestClient(app, base_url="http://localhost")  # in a thread: tests of the page leave a loop in this one
    health = client.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "loading")
    early = client.post("/v1/completions", json={"model": "nano", "prompt": "A"})
    assert (early.status_code, early.headers["Retry-After"], early.json()["error"]["code"]) == (503, "1", "loading")
    running.open()
    health = client.get("/health")
    assert (health.status_code, health.json()["status"]) == (200, "ready")
    running.scheduler.drain(20)
    assert running.ended.wait(20)


def test_a_model_that_cannot_be_loaded_ends_the_thread_with_its_fault():
    def load():
        raise CheckpointError("the file is damaged")

    running = Running(load)
    running.may_load.set()
    assert running.ended.wait(20)
    assert isinstance(running.scheduler.fault, CheckpointError)
    assert not running.ready.is_set()


def test_a_drain_while_loading_ends_the_thread_too(model):
    running = Running(lambda: model)
    running.scheduler.drain(20)
    running.may_load.set()
    assert running.ended.wait(20)
    assert not running.ready.is_set()


def test_what_was_accepted_is_answered_in_a_drain_also_what_waits(model):
    running = Running(lambda: model, parallel=1)
    scheduler = running.open()
    asked = [Asked(model, ["A", "B"]) for _ in range(3)]
    for each in asked:
        scheduler.submit(each.ticket)
    scheduler.drain(20)
    assert running.ended.wait(20)
    assert [(each.fault, each.left) for each in asked] == [(None, 0)] * 3


def test_a_text_for_which_there_is_no_memory_fails_alone(model, monkeypatch):
    running = Running(lambda: model)
    scheduler = running.open()
    session, calls = model.engine.session, []

    def short():
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError
        return session()

    monkeypatch.setattr(model.engine, "session", short)
    large, small = Asked(model, ["A", "B", "C"], tokens=1500), Asked(model)
    scheduler.submit(large.ticket)
    scheduler.submit(small.ticket)
    assert large.done.wait(20)
    assert small.done.wait(20)
    assert large.fault.status_code == 503
    assert small.fault is None
    scheduler.drain(20)
    assert running.ended.wait(20)


def test_a_failure_of_the_engine_ends_the_requests_and_not_the_server(model, monkeypatch, capsys):
    running = Running(lambda: model)
    scheduler = running.open()
    forward = model.engine.forward

    def broken(*requests):
        raise CheckpointError("the engine file was changed")

    monkeypatch.setattr(model.engine, "forward", broken)
    first = Asked(model, ["A", "B", "C"])
    scheduler.submit(first.ticket)
    assert first.done.wait(20)
    assert first.fault.status_code == 500
    assert "file" not in first.fault.detail, "clients need not know of the server's files"
    assert "was changed" in capsys.readouterr().err
    monkeypatch.setattr(model.engine, "forward", forward)
    second = Asked(model)
    scheduler.submit(second.ticket)
    assert second.done.wait(20)
    assert second.fault is None
    scheduler.drain(20)
    assert running.ended.wait(20)


def test_waiting_requests_take_turns(model):
    running = Running(lambda: model, parallel=1)
    many, few = Asked(model, ["A"] * 6, tokens=2), Asked(model, ["B"], tokens=2)
    order = []
    for name, asked in (("many", many), ("few", few)):
        deliver = asked.ticket.deliver

        def note(arrived, name=name, deliver=deliver):
            if arrived.finished:
                order.append(name)
            deliver(arrived)

        asked.ticket.deliver = note
        running.scheduler.submit(asked.ticket)
    running.open()
    assert many.done.wait(20)
    assert order == ["many", "few", *["many"] * 5]
    running.scheduler.drain(20)
    assert running.ended.wait(20)


def test_a_fault_of_one_text_ends_its_request_and_leaves_the_others_tokens_as_they_were(model, monkeypatch):
    take = Member.take
    broken = model.encode("B")

    def fail_at_the_third(member, *given):
        if member.ids[: len(broken)] == broken and len(member.ids) == len(broken) + 2:
            raise UsageError("the model gave no usable logits")
        return take(member, *given)

    def ask_both():
        running = Running(lambda: model, parallel=4)
        good, bad = Asked(model, ["A", "C"], tokens=8), Asked(model, ["B"], tokens=8)
        for asked in (good, bad):
            running.scheduler.submit(asked.ticket)
        running.open()
        assert good.done.wait(20)
        assert bad.done.wait(20)
        running.scheduler.drain(20)
        assert running.ended.wait(20)
        return good, bad

    alone, _ = ask_both()
    monkeypatch.setattr(Member, "take", fail_at_the_third)
    beside, bad = ask_both()
    assert [step.choice.token for step in beside.steps] == [step.choice.token for step in alone.steps]
    assert beside.fault is None
    assert len(bad.steps) == 2
    assert (bad.fault.status_code, bad.fault.detail) == (400, "the model gave no usable logits")


def test_a_request_whose_client_goes_away_gets_no_further_token(model, monkeypatch):
    running = Running(lambda: model, parallel=4)
    leaver, stayer = Asked(model, ["A", "B"], tokens=50), Asked(model, ["C"], tokens=50)
    computed = []
    forward = model.engine.forward

    def count(requests, *experts):
        computed.append(len(requests))
        return forward(requests, *experts)

    monkeypatch.setattr(model.engine, "forward", count)
    take, at = leaver.ticket.deliver, []

    def leave_at_the_fifth(arrived):
        take(arrived)
        if len(leaver.steps) == 5:
            running.scheduler.cancel(leaver.ticket)
            at.append(len(computed))

    leaver.ticket.deliver = leave_at_the_fifth
    running.scheduler.submit(leaver.ticket)
    running.scheduler.submit(stayer.ticket)
    running.open()
    assert stayer.done.wait(20)
    assert len(leaver.steps) == 5, "the step that was being computed reaches nobody"
    assert computed[at[0] :] == [1] * len(computed[at[0] :]), "the texts left before the next token"
    running.scheduler.drain(20)
    assert running.ended.wait(20)


def test_a_request_beyond_its_time_ends_with_an_error_whether_it_runs_or_waits(model, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(scheduler_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    running = Running(lambda: model, parallel=1, request_seconds=10)
    runs, waits = Asked(model, tokens=2000), Asked(model, tokens=2000)
    take = runs.ticket.deliver

    def let_time_pass(arrived):
        take(arrived)
        if len(runs.steps) == 3:
            clock.now = 11.0

    runs.ticket.deliver = let_time_pass
    scheduler = running.open()
    scheduler.submit(runs.ticket)
    scheduler.submit(waits.ticket)
    assert runs.done.wait(20)
    assert waits.done.wait(20)
    for asked in (runs, waits):
        assert (asked.fault.status_code, asked.fault.code) == (504, "deadline_exceeded")
        assert asked.fault.headers["x-should-retry"] == "false", "the clients would ask again, in vain"
    assert len(runs.steps) == 3
    assert not waits.steps
    short = Asked(model, tokens=2)
    scheduler.submit(short.ticket)
    assert short.done.wait(20)
    assert short.fault is None
    scheduler.drain(20)
    assert running.ended.wait(20)
