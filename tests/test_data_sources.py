"""Promises of data.sources and data.shards: every file kind reads the same, and damage is told in one sentence."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from mobilemoe.data import retry, shards
from mobilemoe.data.config import SourceConfig
from mobilemoe.data.mixture import open_source
from mobilemoe.data.sources import Document, HubSource, LocalSource, is_held_out
from mobilemoe.errors import DataError

ROWS = [{"text": f"Document {i}: naïve 🙂\n" * 20, "source": f"book {i}", "license": "MIT"} for i in range(300)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch):
    monkeypatch.setattr(retry, "WAITS", (0.0, 0.0, 0.0))


def write(path, data):
    packed = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)(data)
    path.write_bytes(packed)
    return packed


def read_all(source):
    return [document for shard in range(len(source.shards)) for document in source.documents(shard)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.ndjson"])
def test_json_lines_read_in_file_order_whatever_the_compression(tmp_path, name):
    write(tmp_path / name, LINES)
    found = read_all(LocalSource(tmp_path, "a.*"))
    assert [(d.text, d.source, d.license) for d in found] == [tuple(row.values()) for row in ROWS]
    assert found[0].key == f"{name}:1"


def test_a_zst_file_of_several_frames_reads_whole(tmp_path):
    half = LINES.index(b"\n", len(LINES) // 2) - 5  # frames may end inside a line
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(LINES[:half]) + zstandard.compress(LINES[half:]))
    assert len(read_all(LocalSource(tmp_path, "*.zst"))) == len(ROWS)


def test_parquet_reads_like_json_lines(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet", compression="zstd")
    assert [d.text for d in read_all(LocalSource(tmp_path, "*.parquet"))] == [row["text"] for row in ROWS]


def test_parquet_conversations_lose_the_keys_that_are_none(tmp_path):
    messages = [{**message, "name": None} for message in CHAT]
    pyarrow.parquet.write_table(pyarrow.table({"messages": [messages]}), tmp_path / "a.parquet")
    assert read_all(LocalSource(tmp_path, "*.parquet"))[0].messages == CHAT


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst", "a.md"])
def test_a_plain_file_is_one_document(tmp_path, name):
    write(tmp_path / name, LINES)
    assert read_all(LocalSource(tmp_path, "*")) == [Document(LINES.decode(), None, source=name, key=name)]


def test_blank_documents_and_lines_are_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": " \\n"}\n\n{"text": "x"}\n')
    (tmp_path / "b.txt").write_text("\n")
    assert [d.key for d in read_all(LocalSource(tmp_path, "*"))] == ["a.jsonl:3"]


def test_another_text_field_can_be_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"content": "x"}\n')
    config = SourceConfig(name="a", weight=1, files="*.jsonl", text_field="content")
    assert read_all(open_source(config, tmp_path))[0].text == "x"


def test_shards_are_sorted_and_listed_once(tmp_path):
    for name in ("b-1.txt", "a-2.txt", "a-1.txt"):
        (tmp_path / name).write_text("x")
    assert LocalSource(tmp_path, ["b-*", "*-1.txt", "a-*"]).shards == ["a-1.txt", "a-2.txt", "b-1.txt"]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("none-*.jsonl", "no file matches 'none-"),
        ("/etc/*", "leaves the data folder"),
        ("../*", "leaves"),
        ("*", "kind"),
    ],
)
def test_a_pattern_that_cannot_work_is_refused_at_once(tmp_path, pattern, said):
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(DataError, match=said):
        LocalSource(tmp_path, pattern)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.txt.gz", "a.txt.zst"])
def test_a_compressed_file_cut_anywhere_is_an_error_that_names_it(tmp_path, name):
    packed = write(tmp_path / name, LINES)
    for size in (3, 20, len(packed) // 2, len(packed) - 1):
        (tmp_path / name).write_bytes(packed[:size])
        with pytest.raises(DataError, match=name):
            read_all(LocalSource(tmp_path, "*"))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_of_noise_is_an_error_that_names_it(tmp_path, name):
    (tmp_path / name).write_bytes(bytes(range(256)) * 16)
    with pytest.raises(DataError, match=name):
        read_all(LocalSource(tmp_path, "*"))


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": "cut o',
        b"[1]",
        b"[" * 100_000,
        b'{"text": "\xff"}',
        b'{"text": 3}',
        b'{"other": "x"}',
        b'{"text": "\\ud800"}',
        b'{"text": "x", "source": 3}',
        b'{"messages": []}',
        b'{"messages": "hi"}',
        b'{"messages": [{"role": "user"}]}',
        b'{"messages": [{"role": "user", "content": 1}]}',
    ],
)
def test_a_bad_line_is_an_error_that_names_file_and_line(tmp_path, line):
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError, match=r"bad\.jsonl, line 2,"):
        read_all(LocalSource(tmp_path, "*"))


def test_bytes_that_are_no_text_are_an_error(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc\xff")
    with pytest.raises(DataError, match="not UTF-8 text at byte 3"):
        read_all(LocalSource(tmp_path, "*"))


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.txt.gz"])
def test_an_endless_line_is_refused_before_it_fills_the_memory(tmp_path, name, monkeypatch):
    monkeypatch.setattr(shards, "MAX_DOCUMENT_BYTES", 1000)
    write(tmp_path / name, b"x" * 10_000)
    with pytest.raises(DataError, match="longer than 1000 bytes"):
        read_all(LocalSource(tmp_path, "*"))


def test_a_hub_dataset_streams_the_same_documents(tmp_path):
    for number in range(3):
        write(tmp_path / f"{number}.jsonl", LINES)
    files = [str(tmp_path / f"{number}.jsonl") for number in range(3)]
    source = open_source(SourceConfig(name="a", weight=1, hub="json", data_files=files), tmp_path)
    assert len(source.shards) == 3
    assert [d.text for d in source.documents(2)] == [row["text"] for row in ROWS]
    assert source.fingerprint != HubSource("json", data_files=files[:2]).fingerprint


def test_a_hub_dataset_that_cannot_be_opened_or_read_is_an_error(tmp_path):
    with pytest.raises(DataError, match="cannot be opened"):
        HubSource("json", data_files=str(tmp_path / "missing.jsonl"))
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n{"text": \n')
    with pytest.raises(DataError, match="cannot be read"):
        read_all(HubSource("json", data_files=str(tmp_path / "bad.jsonl")))


def test_the_held_out_split_is_a_stable_fraction():
    documents = [Document("x", None, source=f"book {i}", key="k") for i in range(20_000)]
    held = [d.source for d in documents if is_held_out(d, 0.01)]
    assert 150 < len(held) < 250
    assert held[:2] == ["book 19", "book 146"]  # the same on every machine, or a checkpoint's validation text leaks
    assert not any(is_held_out(d, 0.0) for d in documents)


def test_another_answer_to_the_same_question_is_on_the_same_side():
    for number in range(300):
        asked = {"role": "user", "content": f"What is {number}?"}
        answers = [[asked, {"role": "assistant", "content": answer}] for answer in ("Odd.", "Even.")]
        sides = {is_held_out(Document(None, messages, "s", "k"), 0.5) for messages in answers}
        assert len(sides) == 1
