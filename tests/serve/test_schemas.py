"""Random weights, held to a schema, write what fits it: whatever the schema and the prompt."""

import json
from collections import Counter
from itertools import chain, islice

import pytest

import mobilemoe
from mobilemoe.sampling import Sampling
from mobilemoe.serve.errors import ApiError
from mobilemoe.serve.structure import Grammars, grammar, json_rule
from schemas import fits, made_schemas, real_schemas
from tiny_model import write_model

MOST_TOKENS = 400
TOGETHER = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("random") / "model", max_position_embeddings=1024)
    return mobilemoe.load(folder, threads=1)


def outcomes(model, schemas, seed) -> Counter:
    """How the texts ended, one for each schema, each after a prompt of its own; AssertionError if one does not fit."""
    grammars = Grammars(model.tokenizer, model.config.vocab_size, model.stop_ids)
    ends: Counter[str] = Counter()
    waiting = iter(enumerate(schemas))
    # Random weights seldom close what they have opened: without a push, most texts end with the limit of tokens.
    starts = ((token, model.tokenizer.token_bytes(token)[:1]) for token in range(model.tokenizer.vocab_size))
    push = {token: 6.0 for token, start in starts if start in (b'"', b"]", b"}")}
    batch, running = model.engine.batch(), {}
    while True:
        while len(running) < TOGETHER and (following := next(waiting, None)) is not None:
            number, schema = following
            try:
                structure = grammars.compile(grammar(f"start: {json_rule(schema)}"), "response_format")
            except ApiError:
                ends["refused"] += 1
                continue
            prompt = model.encode(f"Case {seed}, {number}: {json.dumps(schema)[: 20 + number % 200]}")
            sampling = Sampling(temperature=(0, 0.7, 1, 5)[number % 4], seed=number, logit_bias=push)
            writer = model.writer(model.fitting(prompt, MOST_TOKENS))
            running[batch.join(prompt, sampling, guide=structure.guide())] = (schema, writer, [])
        if not running:
            return ends
        for number, choice in batch.step():
            schema, writer, pieces = running[number]
            pieces.append(writer.push(choice.token))
            if writer.finished:
                batch.leave(number)
                del running[number]
                ends[writer.finished] += 1
                if writer.finished == "stop":
                    text = "".join(pieces)
                    assert fits(json.loads(text), schema), (schema, text)


def test_a_text_that_ends_fits_its_schema(model):
    ends = outcomes(model, chain(real_schemas(30), islice(made_schemas(1), 30)), seed=1)
    assert ends.total() == 60
    assert ends["stop"] >= 40
    assert ends["refused"] <= 5


@pytest.mark.slow
def test_a_thousand_texts_fit_their_schemas(model):
    ends = outcomes(model, chain(real_schemas(500), islice(made_schemas(2), 500)), seed=2)
    assert ends.total() == 1000
    assert ends["stop"] >= 600
    assert ends["refused"] <= 10
