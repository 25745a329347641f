"""A comparison gives the bits of both models, KL(parent || model) and the share of equal choices, text by text."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

import mobilemoe
from mobilemoe.checkpoint import write_random
from mobilemoe.errors import DataError, MobileMoEError, UsageError
from mobilemoe.evaluate.compare import logits as compare
from mobilemoe.evaluate.compare.bits_per_byte import score_file
from mobilemoe.evaluate.compare.compression import compression_table
from mobilemoe.evaluate.compare.logits import compare_logits
from mobilemoe.presets import family_member
from mobilemoe.sampling import log_softmax
from tiny_model import write_model

CHAT = [{"role": "user", "content": "Où?"}, {"role": "assistant", "content": "Here <|eot|>."}]
ENTRIES = (
    {"text": "The quick brown fox, 東京 and 12345.", "domain": "a"},
    {"text": "one two three four", "source": "b"},
    {"messages": CHAT, "domain": "a"},
    {"text": "five"},
)


@pytest.fixture(scope="module")
def model(tiny_folder):
    return mobilemoe.load(tiny_folder, threads=1)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    return mobilemoe.load(write_model(tmp_path_factory.mktemp("models") / "parent", seed=2), backend="torch")


@pytest.fixture
def path(tmp_path):
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in ENTRIES))
    return tmp_path / "t.jsonl"


def compare_file(model, parent, path, **options):
    """What the table says of one model and of its parent, by domain."""
    found = compression_table(parent, {"model": model}, path, **options)
    return {
        domain: SimpleNamespace(
            parent_bits_per_byte=found.parent_bits_per_byte[domain], tokens=found.tokens[domain], **vars(cost)
        )
        for domain, cost in found.costs["model"].items()
    }


def softmax(logits_V):
    top = max(logits_V)
    exps = [math.exp(value - top) for value in logits_V]
    total = math.fsum(exps)
    return [value / total for value in exps]


@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("window", [2, 8, None])
def test_divergence_and_agreement_are_those_of_a_slow_count(model, parent, path, window, rows, monkeypatch):
    monkeypatch.setattr(compare, "_BLOCK", rows * model.config.vocab_size)
    ids = model.encode(ENTRIES[1]["text"])
    nats, agreed, size = 0.0, 0, (window or 256) - 1
    for at in range(1, len(ids)):
        before = [ids[0], *ids[at - (at - 1) % size : at]]
        q_V, p_V = (softmax(each.logits(before)[-1].tolist()) for each in (model, parent))
        nats += math.fsum(p * math.log(p / q) for p, q in zip(p_V, q_V, strict=True))
        agreed += int(np.argmax(p_V) == np.argmax(q_V))
    found = compare_file(model, parent, path, window=window)["b"]
    assert found.divergence == pytest.approx(nats / (len(ids) - 1), rel=1e-4)
    assert found.agreement == agreed / (len(ids) - 1)
    assert found.tokens == len(ids) - 1


def compare_in_float64(parent_TV, model_TV, targets):
    """What `compare_logits` says, from both log-softmax arrays in float64."""
    log_p_TV, log_q_TV = log_softmax(parent_TV), log_softmax(model_TV)
    each = np.arange(len(targets))
    return (
        log_p_TV[each, targets],
        log_q_TV[each, targets],
        (np.exp(log_p_TV) * (log_p_TV - log_q_TV)).sum(axis=1),
        log_p_TV.argmax(axis=1) == log_q_TV.argmax(axis=1),
    )


@pytest.mark.parametrize("offset", [0, -40])
@pytest.mark.parametrize("noise", [0.03, 1])
@pytest.mark.parametrize("vocabulary", [300, 16_384])
def test_the_fast_sums_are_those_in_float64(vocabulary, noise, offset):
    rng = np.random.default_rng(0)
    parent_TV = 3 * rng.standard_normal((70, vocabulary), np.float32)
    models = [(parent_TV + noise * rng.standard_normal(parent_TV.shape) + offset).astype(np.float32) for _ in range(3)]
    targets = rng.integers(0, vocabulary, len(parent_TV)).tolist()
    found = compare_logits(parent_TV, models, targets)
    for number, model_TV in enumerate(models):
        log_p_T, log_q_T, nats_T, agreed_T = compare_in_float64(parent_TV, model_TV, targets)
        assert found.parent_logprobs_T.sum() == pytest.approx(log_p_T.sum(), rel=1e-7)
        assert found.logprobs_CT[number].sum() == pytest.approx(log_q_T.sum(), rel=1e-7)
        if noise == 1 and not offset:
            assert found.nats_CT[number].sum() == pytest.approx(nats_T.sum(), rel=1e-6)
        # An offset of 40 is itself rounded: to 2e-6 in the logits.
        assert found.nats_CT[number].mean() == pytest.approx(nats_T.mean(), rel=1e-6, abs=1e-7)
        assert found.nats_CT[number] == pytest.approx(nats_T, rel=1e-6, abs=1e-6)
        assert found.agreed_CT[number].tolist() == agreed_T.tolist()


@pytest.mark.parametrize("window", [5, None])
def test_bits_per_byte_are_those_of_each_model_alone(model, parent, path, window):
    heard = []
    found = compare_file(model, parent, path, window=window, on_text=heard.append)
    ours, theirs = (score_file(each, path, window=window) for each in (model, parent))
    assert heard == [1, 2, 3, 4]
    assert found.keys() == ours.keys() == {"a", "b", "text", "all"}
    for name, each in found.items():
        assert each.bits_per_byte == pytest.approx(ours[name].bits_per_byte, rel=1e-5)
        assert each.parent_bits_per_byte == pytest.approx(theirs[name].bits_per_byte, rel=1e-5)
        assert each.tokens == ours[name].tokens
    for name in ("divergence", "agreement"):
        sums = [getattr(found[at], name) * found[at].tokens for at in ("a", "b", "text")]
        assert getattr(found["all"], name) == pytest.approx(sum(sums) / found["all"].tokens)


def test_a_model_beside_itself_does_not_diverge(model, path):
    whole = compare_file(model, model, path)["all"]
    assert (whole.divergence, whole.agreement) == (0, 1)
    assert whole.bits_per_byte == whole.parent_bits_per_byte


def test_the_same_weights_in_two_backends_hardly_diverge(model, tiny_folder, path):
    whole = compare_file(model, mobilemoe.load(tiny_folder, backend="torch"), path)["all"]
    assert 0 < whole.divergence < 0.01
    assert whole.agreement > 0.8


def test_the_window_is_bounded_by_the_shorter_context_and_by_memory(model, tmp_path, path, monkeypatch):
    small = mobilemoe.load(write_model(tmp_path / "small", max_position_embeddings=16), threads=1)
    for pair in ((model, small), (small, model)):
        compare_file(*pair, path)
        for window in (1, 17):
            with pytest.raises(UsageError, match=f"window is {window}, but must be from 2 to 16"):
                compare_file(*pair, path, window=window)
    monkeypatch.setattr(compare, "_LOGITS", 5 * model.config.vocab_size)
    seen = []
    monkeypatch.setattr(
        model.backend, "logits", lambda ids, real=model.backend.logits: seen.append(len(ids)) or real(ids)
    )
    compare_file(model, small, path)
    assert max(seen) == 4  # a window's last token is only predicted


def test_models_that_read_texts_differently_are_refused(model, tmp_path, path):
    config = family_member(32, expansion=1, layers=1, vocab_size=320)
    write_random(tmp_path / "narrow", config, seed=0, format="int4")
    with pytest.raises(UsageError, match="16384 and 320 entries"):
        compare_file(model, mobilemoe.load(tmp_path / "narrow", threads=1), path, window=8)
    folder = write_model(tmp_path / "other")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:20]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UsageError, match="the models read this text as different tokens"):
        compare_file(model, mobilemoe.load(folder, threads=1), path)


def test_a_malformed_file_is_named_with_its_line(model, tmp_path):
    path = tmp_path / "t.jsonl"
    for text, words in (
        ("", "no text"),
        ('{"text": "a"}\n{bad\n', "line 2"),
        ('{"messages": [{"role": "user"}]}', "line 1"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=words):
            compare_file(model, model, path)


def test_a_model_without_a_tokenizer_is_one_sentence(model, tmp_path, path):
    bare = mobilemoe.load(write_model(tmp_path / "bare", tokenizer=False), threads=1)
    for pair in ((model, bare), (bare, model)):
        with pytest.raises(MobileMoEError, match=r"tokenizer\.json"):
            compare_file(*pair, path)


def test_eval_against_a_parent_prints_what_compare_says(mobilemoe_cli, tiny_folder, tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"text": "Once upon a time there was a fox.", "domain": "tales"}) + "\n")
    options = ("--text", text, "--against", tiny_folder)
    values = mobilemoe_cli("eval", tiny_folder, "--backend", "torch", *options, "--json").json
    costs = values["models"][str(tiny_folder)]
    assert costs["all"]["divergence"] == pytest.approx(0, abs=1e-9)
    assert costs["all"]["agreement"] == 1
    assert costs["tales"]["bits_per_byte"] == values["parent_bits_per_byte"]["all"]
    shown = mobilemoe_cli("eval", tiny_folder, *options, "--experts")  # int8 against exact arithmetic
    assert shown.status == 0
    assert "tales" in shown.out
    assert "experts in common in fp32, layer 0" in shown.out
