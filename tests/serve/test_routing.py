"""The server tells the experts of each token to those who ask."""

import numpy as np
import pytest

QUESTION = [{"role": "user", "content": "What is 58 minus 23?"}]
ASK = {"x_mobilemoe": {"routing": True}}


def ask(server, **fields):
    given = {"model": "nano", "messages": QUESTION, "temperature": 0, "extra_body": ASK} | fields
    return server.client.chat.completions.create(**given)


@pytest.fixture(scope="module")
def expected(nano) -> list:
    """[tokens][layers][active] of the passes that choose the answer's tokens, but for the one that ends it."""
    ids = nano.encode(messages=QUESTION)
    made = nano.engine.generate_ids(ids, stop_ids=nano.stop_ids)
    text = [*ids, *made[:-1]]
    config = nano.config
    chosen_TLA = np.empty((len(text), config.num_hidden_layers, config.num_experts_per_tok), np.int32)
    session = nano.engine.session()
    nano.engine.forward([(session, text, 1)], {session: chosen_TLA})
    return chosen_TLA[len(ids) - 1 : -1].tolist()


def test_a_whole_answer_tells_the_experts_of_each_token(server, expected):
    answer = ask(server).choices[0]
    assert answer.finish_reason == "stop"
    assert answer.x_mobilemoe["routing"] == expected


def test_a_stream_tells_them_with_each_token(server, expected):
    events = list(ask(server, stream=True))[1:]
    told = [event.choices[0].x_mobilemoe["routing"] for event in events]
    assert [len(each) for each in told[:-1]] == [1] * len(expected)
    assert [each for event in told for each in event] == expected


def test_every_answer_and_every_plain_continuation_has_its_own(server, nano):
    fields = {"model": "nano", "prompt": "Once upon a time", "max_tokens": 5, "n": 2, "extra_body": ASK}
    answer = server.client.completions.create(**fields)
    config = nano.config
    shape = (5, config.num_hidden_layers, config.num_experts_per_tok)
    assert [np.array(choice.x_mobilemoe["routing"]).shape for choice in answer.choices] == [shape, shape]


def test_who_does_not_ask_is_told_nothing(server):
    answer = ask(server, extra_body={})
    assert not hasattr(answer.choices[0], "x_mobilemoe")
    assert answer.choices[0].message.content == ask(server).choices[0].message.content


def test_the_list_of_models_tells_the_shape_of_this_one(server, nano):
    described = server.client.models.list().data[0].x_mobilemoe
    assert described == {
        "context": nano.config.max_position_embeddings,
        "layers": nano.config.num_hidden_layers,
        "experts": nano.config.num_local_experts,
        "experts_per_token": nano.config.num_experts_per_tok,
    }
