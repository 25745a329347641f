"""`best_of`, `echo` and scores of plain completions, asked by the official `openai` client."""

import openai
import pytest

from mobilemoe.sampling import log_softmax
from servers import Server

STORY = "Once upon a time"


SERVER_OPTIONS = ("--parallel", "4", "--queue", "8")


def tell(server: Server, **fields):
    return server.client.completions.create(**{"model": "nano", "prompt": STORY, "temperature": 0} | fields)


def test_best_of_gives_the_likeliest_of_several_texts(server):
    fields = {"temperature": 1, "seed": 3, "max_tokens": 12, "prompt": [STORY, "An economy is"]}
    every = tell(server, n=4, logprobs=0, **fields).choices
    best = tell(server, n=2, best_of=4, **fields)
    assert [choice.index for choice in best.choices] == [0, 1, 2, 3]
    assert best.choices[0].logprobs is None
    for start in (0, 4):
        mean = {
            choice.text: sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)
            for choice in every[start : start + 4]
        }
        wanted = sorted(mean, key=mean.get, reverse=True)[:2]
        assert [choice.text for choice in best.choices[start // 2 : start // 2 + 2]] == wanted
    assert best.usage.completion_tokens == 8 * 12, "those that are not shown were computed too"


def test_an_echo_gives_the_prompt_back_with_its_logprobs(server, nano):
    ids = nano.encode(STORY)
    plain = tell(server, max_tokens=4)
    assert tell(server, max_tokens=4, echo=True).choices[0].text == STORY + plain.choices[0].text
    choice = tell(server, max_tokens=4, echo=True, logprobs=2).choices[0]
    found = choice.logprobs
    assert choice.text == STORY + plain.choices[0].text
    assert "".join(found.tokens[1:]) == choice.text, "the first is the begin-of-text token"
    for token, offset in zip(found.tokens[1:], found.text_offset[1:], strict=True):
        assert choice.text.startswith(token, offset)
    assert (found.token_logprobs[0], found.top_logprobs[0]) == (None, None)
    expected = log_softmax(nano.logits(ids))
    assert found.token_logprobs[1 : len(ids)] == pytest.approx(
        [expected[place, token] for place, token in enumerate(ids[1:])]
    )
    assert [max(top.values()) for top in found.top_logprobs[1 : len(ids)]] == pytest.approx(expected.max(-1)[:-1])
    assert [len(top) for top in found.top_logprobs[1:]] == [2] * (len(ids) + 3)


def test_a_prompt_can_be_scored_without_writing(server, nano):
    long = " ".join(["Once upon a time there was a sea."] * 20)
    fields = {"prompt": [long, STORY], "max_tokens": 0, "echo": True, "logprobs": 0}
    answer = tell(server, **fields)
    assert [choice.text for choice in answer.choices] == [long, STORY]
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    assert answer.usage.completion_tokens == 0
    ids = nano.encode(long)
    total = sum(answer.choices[0].logprobs.token_logprobs[1:])
    assert total == pytest.approx(nano.loglikelihood(ids[:1], ids[1:])[0])
    events = [*tell(server, stream=True, **fields)]
    assert [event.choices[0].text for event in events] == [long, STORY]
    assert events[0].choices[0].logprobs == answer.choices[0].logprobs
    assert events[0].choices[0].finish_reason == "length"


def test_the_pieces_of_an_echoed_stream_join_to_the_whole(server):
    events = [*tell(server, max_tokens=4, echo=True, logprobs=1, stream=True)]
    whole = tell(server, max_tokens=4, echo=True, logprobs=1).choices[0]
    assert "".join(event.choices[0].text for event in events) == whole.text
    offsets = [
        offset for event in events if event.choices[0].logprobs for offset in event.choices[0].logprobs.text_offset
    ]
    assert offsets == whole.logprobs.text_offset


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 129}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt": ["A"] * 65, "best_of": 2}, "n"),
    ],
)
def test_a_wrong_completion_names_its_field(server, change, param):
    with pytest.raises(openai.BadRequestError) as refused:
        tell(server, **change)
    assert refused.value.param == param
