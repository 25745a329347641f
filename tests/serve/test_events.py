"""Events that only add text are written in a faster way than others: they have to be the same to the last byte."""

import json

import pytest

from mobilemoe.sampling import Choice
from mobilemoe.serve import completions, messages
from mobilemoe.serve.answers import ChatAnswer, CompletionAnswer
from mobilemoe.serve.messages_wire import MessagesRequest
from mobilemoe.serve.order import EventTemplate, written
from mobilemoe.serve.scheduler import Step

PIECES = ["A", "", '"', "\\", "\n\n", "data: ", "\u2028", "\U0001f600", "{}%s", "\x00", "é", "end"]


def steps(nano, answers):
    """Each piece for each answer in turn, then a last token that ends it."""
    for number, piece in enumerate(PIECES):
        for index in range(answers):
            yield Step(index, Choice(5), piece, number + 1, None)
    for index in range(answers):
        yield Step(index, Choice(min(nano.stop_ids)), "", len(PIECES) + 1, "stop")


def answer(kind, nano, answers=1, **named):
    fields = {"with_logprobs": False, "with_routing": False, "warnings": ["user is ignored"]} | named
    return kind(
        'a "model"',
        nano.tokenizer,
        count=answers,
        answers=answers,
        prompt_tokens=3,
        stop_ids=nano.stop_ids,
        **fields,
    )


def messages_reply(answer, _):
    body = MessagesRequest(model="nano", messages=[{"role": "user", "content": "A"}], max_tokens=100)
    return messages._Reply(body, "nano", answer)


@pytest.mark.parametrize("with_usage", [False, True])
@pytest.mark.parametrize(
    ("reply", "kind", "answers"),
    [
        (completions._Reply, CompletionAnswer, 2),
        (completions._Reply, ChatAnswer, 2),
        (messages_reply, ChatAnswer, 1),
    ],
)
def test_events_that_add_text_are_those_of_the_general_way(nano, monkeypatch, reply, kind, answers, with_usage):
    collected = answer(kind, nano, answers)
    made = reply(collected, with_usage)
    for step in steps(nano, answers):
        made.add(step)
        fast = [*made.events(step)]
        if not any("content_block_start" in event for event in fast):  # a block begins once
            with monkeypatch.context() as patch:
                patch.setattr(collected, "added_text", lambda step: None)
                assert [*made.events(step)] == fast
        for event in fast:
            json.loads(event.partition("data: ")[2])


@pytest.mark.parametrize("asked", ["with_logprobs", "with_routing"])
def test_what_else_was_asked_for_is_in_every_event(nano, asked):
    collected = answer(ChatAnswer, nano, **{asked: True})
    made = completions._Reply(collected, False)
    step = Step(0, Choice(5, -1.0, (), ((1, 2), (3, 4))), "A", 1, None)
    made.add(step)
    choice = json.loads("".join(made.events(step)).removeprefix("data: "))["choices"][0]
    assert (choice["logprobs"] is not None) == (asked == "with_logprobs")
    assert ("x_mobilemoe" in choice) == (asked == "with_routing")


def test_a_template_is_filled_with_any_text():
    template = EventTemplate(lambda text: written({"model": "x", "delta": text, "more": [1]}, "name"))
    for text in PIECES:
        assert template.filled(text) == written({"model": "x", "delta": text, "more": [1]}, "name")
