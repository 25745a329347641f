"""Bits per byte are the sum of -log2 of each token's probability over the bytes of the text, and nothing else."""

import gzip
import json
import math
import shutil
from pathlib import Path

import pytest
import zstandard

import mobilemoe
from mobilemoe.errors import DataError, MobileMoEError, UsageError
from mobilemoe.evaluate.compare.bits_per_byte import score_file
from mobilemoe.evaluate.compare.compression import compression_table
from tiny_model import write_model

CHAT = [{"role": "user", "content": "Où?"}, {"role": "assistant", "content": "Here <|eot|>."}]


@pytest.fixture(scope="module")
def model(tiny_folder):
    return mobilemoe.load(tiny_folder)


def by_hand(model, ids: list[int], window: int) -> float:
    """Bits of ids[1:], a token at a time: behind BOS and the tokens of its own window."""
    bits = 0.0
    for at in range(1, len(ids)):
        start = at - (at - 1) % (window - 1)
        logits = model.logits([ids[0], *ids[start:at]])[-1].tolist()
        top = max(logits)
        log_sum = top + math.log(math.fsum(math.exp(value - top) for value in logits))
        bits += (log_sum - logits[ids[at]]) / math.log(2)
    return bits


def write(path, *entries) -> str:
    path.write_text("".join(entry if isinstance(entry, str) else json.dumps(entry) + "\n" for entry in entries))
    return str(path)


@pytest.mark.parametrize("window", [2, 3, 8, 13, 14, 256, None])
def test_bits_are_those_of_a_slow_count(model, tmp_path, window):
    text = "The quick brown fox, 東京 and 12345."
    ids = model.encode(text)
    assert len(ids) > 13
    score = score_file(model, write(tmp_path / "t.jsonl", {"text": text}), window=window)["all"]
    assert score.bits == pytest.approx(by_hand(model, ids, window or 256), rel=1e-5)
    assert (score.bytes, score.tokens, score.texts) == (len(text.encode()), len(ids) - 1, 1)
    assert score.bits_per_byte == score.bits / score.bytes


def without_bos(folder: Path, scratch: Path) -> Path:
    """The model in `folder` with a tokenizer that has no begin-of-text."""
    nameless = scratch / "nameless"
    shutil.copytree(folder, nameless)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = nameless / name
        path.write_text(path.read_text().replace("<|begin_of_text|>", "<|something_else|>"))
    return nameless


@pytest.mark.parametrize("text", ["a", "The quick brown fox", "two\r\nlines\r\n", "é"])
def test_without_begin_of_text_a_text_stands_behind_end_of_text_and_every_token_counts(tiny_folder, tmp_path, text):
    nameless = mobilemoe.load(without_bos(tiny_folder, tmp_path))
    ids = [nameless.tokenizer.end_of_text_id, *nameless.tokenizer.encode(text)]
    path = write(tmp_path / "t.jsonl", {"text": text})
    score = score_file(nameless, path)["all"]
    assert score.bits == pytest.approx(by_hand(nameless, ids, 256), rel=1e-5)
    assert (score.bytes, score.tokens) == (len(text.encode()), len(ids) - 1)
    parent = mobilemoe.load(nameless.folder, backend="torch")
    table = compression_table(parent, {"it": nameless}, path)
    assert table.tokens == {"text": len(ids) - 1, "all": len(ids) - 1}
    assert table.costs["it"]["all"].bits_per_byte == pytest.approx(score.bits_per_byte, rel=1e-4)


def test_a_template_that_begins_with_what_is_said_or_says_nothing(tiny_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    plain = mobilemoe.load(folder)
    score = score_file(plain, write(tmp_path / "t.jsonl", {"messages": CHAT}))["all"]
    ids = plain.encode("".join(f"{message['content']}\n" for message in CHAT))
    assert score.tokens == len(ids) - 1
    assert score.bits == pytest.approx(by_hand(plain, ids, 256), rel=1e-5)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}")
    with pytest.raises(DataError, match="line 1: the chat template leaves out the last message"):
        score_file(mobilemoe.load(folder), write(tmp_path / "t.jsonl", {"messages": CHAT}))


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.jsonl.zst"])
def test_marks_and_compression_change_nothing(model, tmp_path, name):
    plain = score_file(model, write(tmp_path / "plain.jsonl", {"text": "one"}, {"text": "two"}))["all"]
    data = b"\xef\xbb\xbf" + (tmp_path / "plain.jsonl").read_bytes().replace(b"\n", b"\r\n")
    packed = gzip.compress(data) if name.endswith("gz") else zstandard.compress(data) if "zst" in name else data
    (tmp_path / name).write_bytes(packed)
    assert score_file(model, tmp_path / name)["all"] == plain


def test_a_text_longer_than_the_context_is_scored_whole(tmp_path):
    small = mobilemoe.load(write_model(tmp_path / "small", max_position_embeddings=16))
    text = "a b c d e f g h i j " * 2
    ids = small.encode(text)
    assert len(ids) > 20
    score = score_file(small, write(tmp_path / "t.jsonl", {"text": text}))["all"]
    assert score.tokens == len(ids) - 1
    assert score.bits == pytest.approx(by_hand(small, ids, 16), rel=1e-5)


def test_conversations_count_control_tokens_over_the_bytes_of_what_is_said(model, tmp_path):
    ids = model.encode(messages=CHAT)
    prompt = model.tokenizer.encode("<|header_start|>assistant<|header_end|>\n\n", special=True)
    ids = ids[: -len(prompt)]
    score = score_file(model, write(tmp_path / "t.jsonl", {"messages": CHAT, "text": None}))["all"]
    assert score.bits == pytest.approx(by_hand(model, ids, 256), rel=1e-5)
    assert (score.bytes, score.tokens) == (len("Où?".encode()) + len("Here <|eot|>."), len(ids) - 1)


def test_all_is_the_sum_of_its_sources(model, tmp_path):
    path = write(
        tmp_path / "t.jsonl",
        {"text": "one", "domain": "a", "source": "ignored"},
        "\n",
        {"text": "two and", "source": "b", "messages": None},
        {"text": "three", "domain": "a"},
        {"text": "four"},
        {"text": "five", "domain": "all"},
        {"messages": CHAT, "domain": "[/b]"},
    )
    heard = []
    scores = score_file(model, path, on_text=heard.append)
    assert heard == [1, 2, 3, 4, 5, 6]
    assert scores.keys() == {"a", "b", "text", "[/b]", "all"}
    whole = scores.pop("all")
    assert whole.texts == 6
    assert scores["a"].texts == 2
    five = score_file(model, write(tmp_path / "five.jsonl", {"text": "five"}))["all"]
    for name in ("bits", "bytes", "tokens"):
        parts = sum(getattr(score, name) for score in scores.values()) + getattr(five, name)
        assert getattr(whole, name) == pytest.approx(parts)
    alone = score_file(model, write(tmp_path / "a.jsonl", {"text": "one"}, {"text": "three"}))["all"]
    assert scores["a"].bits == pytest.approx(alone.bits)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{**message, "name": "Ana"} for message in CHAT]},
        {"messages": [CHAT[0], {**CHAT[1], "weight": 0}]},
        {"messages": [{**message, "tool_calls": None, "weight": None} for message in CHAT], "text": "passed over"},
        {"messages": CHAT, "tool_calls": [], "license": "MIT", "category": "talk", "nobody knows": 1},
    ],
)
def test_rows_are_read_as_training_reads_them(row, model, tmp_path):
    """Names and weights of messages too, which say nothing of how the conversation is written."""
    plain = score_file(model, write(tmp_path / "plain.jsonl", {"messages": CHAT}))["all"]
    assert score_file(model, write(tmp_path / "t.jsonl", {"text": " \n"}, row))["all"] == plain


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "no text"),
        (["\n\n"], "no text"),
        ([{"text": "a"}, "{bad\n"], "line 2"),
        (["[" * 100_000 + "\n"], "line 1"),
        ([{"text": "a"}, "[1]\n"], "line 2"),
        (["5\n"], "line 1"),
        ([{"text": 5}], "line 1"),
        ([{"text": ""}], "no text"),
        ([{"txt": "a"}], "line 1"),
        ([{"messages": []}], "line 1"),
        ([{"messages": "abc"}], "line 1"),
        ([{"messages": [{"role": "user"}]}], "line 1"),
        ([{"messages": [{"role": "user", "content": ""}]}], "line 1"),
        (['{"text": "a\\ud800"}\n'], "line 1"),
        ([{"text": "a", "source": ["b"]}], "line 1"),
        ([{"text": "a", "domain": {"b": 1}}], "line 1"),
        ([{"messages": [{"role": "user", "content": "a", "weight": 1}]}], "line 1"),
        ([{"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}], "line 1"),
        ([{"messages": [{"role": "user", "content": None}]}], "line 1"),
        ([{"messages": [5]}], "line 1"),
        ([{"messages": {"role": "user", "content": "a"}}], "line 1"),
    ],
)
def test_a_malformed_file_is_named_with_its_line(model, tmp_path, lines, words):
    path = write(tmp_path / "t.jsonl", *lines)
    with pytest.raises(DataError) as caught:
        score_file(model, path)
    text = str(caught.value)
    assert path in text
    assert words in text
    assert len(text.splitlines()) == 1


def test_a_file_that_cannot_be_read_is_named(model, tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xe9"}\n')
    for path in (tmp_path, tmp_path / "none", tmp_path / "latin.jsonl"):
        with pytest.raises(DataError, match=path.name):
            score_file(model, path)


@pytest.mark.parametrize("window", [-1, 0, 1, 257])
def test_a_window_outside_the_context_is_refused(model, tmp_path, window):
    with pytest.raises(UsageError, match=f"window is {window}"):
        score_file(model, write(tmp_path / "t.jsonl", {"text": "a"}), window=window)


def test_a_model_without_a_tokenizer_is_one_sentence(tmp_path):
    bare = mobilemoe.load(write_model(tmp_path / "bare", tokenizer=False))
    with pytest.raises(MobileMoEError, match=r"tokenizer\.json"):
        score_file(bare, write(tmp_path / "t.jsonl", {"text": "a"}))
