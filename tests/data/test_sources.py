"""Promises of data.sources and data.shards: every file kind reads the same, and damage is told in one sentence."""

import datetime
import decimal
import json
import os
from codecs import BOM_UTF8
from contextlib import suppress

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from mobilemoe.data import retry, shards
from mobilemoe.data.config import SourceConfig
from mobilemoe.data.mixture import open_source
from mobilemoe.data.sources import Document, LocalSource, document_of_row, messages_as_stored
from mobilemoe.errors import DataError
from source_files import CHAT, LINES, ROWS, read_all, write


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch):
    monkeypatch.setattr(retry, "WAITS", (0.0, 0.0, 0.0))


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


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.txt", "a.txt.gz", "a.md"])
def test_byte_order_marks_are_no_text(tmp_path, name):
    lines = b'{"text": "one"}\n'
    is_json = "jsonl" in name
    for data in (BOM_UTF8 + lines, BOM_UTF8 + b"\r\n" + lines if is_json else BOM_UTF8 + lines):
        write(tmp_path / name, data)
        [document] = read_all(LocalSource(tmp_path, "*"))
        assert document.text == ("one" if is_json else lines.decode())
    write(tmp_path / name, BOM_UTF8)
    assert read_all(LocalSource(tmp_path, "*")) == []


def test_files_with_marks_may_be_put_together(tmp_path):
    part = BOM_UTF8 + b'{"text": "one"}\n'
    (tmp_path / "a.jsonl").write_bytes(part + part + BOM_UTF8 + b"\n" + part)
    assert [document.key for document in read_all(LocalSource(tmp_path, "*"))] == [
        "a.jsonl:1",
        "a.jsonl:2",
        "a.jsonl:4",
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.txt"])
def test_wide_text_is_named(tmp_path, name, encoding):
    write(tmp_path / name, '{"text": "one"}\n{"text": "two"}\n'.encode(encoding))
    with pytest.raises(DataError, match=rf"{name} is text in UTF-16 or UTF-32: save it as UTF-8"):
        read_all(LocalSource(tmp_path, "*"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.txt", "a.parquet"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path, name, kind):
    path = tmp_path / name
    path.write_bytes(b"")
    source = LocalSource(tmp_path, "*")
    path.unlink()
    {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda path: path.symlink_to("/dev/zero")}[kind](path)
    with pytest.raises(DataError, match=r"is no regular file|cannot be read: Is a directory"):
        read_all(source)


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
        b'{"messages": {}, "text": "x"}',
        b'{"messages": [], "text": null}',
        b'{"messages": [{"role": "assistant", "content": null}]}',
        b'{"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]}',
        b'{"messages": [{"role": "tool", "content": "", "tool_call_id": "1"}]}',
        b'{"messages": [{"role": "user", "content": "x", "name": 3}]}',
        b'{"messages": [{"role": "user", "content": "x", "weight": 0}]}',
        b'{"messages": [{"role": "assistant", "content": "x", "weight": 0.5}]}',
        b'{"messages": [{"role": "assistant", "content": "x", "weight": "0"}]}',
        b'{"messages": [{"role": "\\ud800", "content": "x"}]}',
        b'{"text": "x", "license": "\\udfff"}',
        b'{"text": "x", "category": ["\\uDBFF"]}',
        b'{"text": "x", "source": "\\ud83d"}',
        b'{"text": "x", "other": {"\\ud83d": 1}}',
        b'{"text": "\xed\xa0\x80"}',
    ],
)
def test_a_bad_line_is_an_error_that_names_file_and_line(tmp_path, line):
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError, match=r"bad\.jsonl, line 2,"):
        read_all(LocalSource(tmp_path, "*"))


def test_messages_that_are_none_leave_the_text(tmp_path):
    rows = [{"messages": nothing, "text": "x"} for nothing in ([], None)]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"messages": CHAT, "text": ""}])
    )
    table = pyarrow.table({"messages": [[], None, CHAT], "text": ["x", "x", None]})
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    for name in ("a.jsonl", "b.parquet"):
        found = read_all(LocalSource(tmp_path, name))
        assert [(document.text, document.messages) for document in found] == [("x", None), ("x", None), (None, CHAT)]


def test_of_a_message_the_name_is_left_out_and_the_weight_kept(tmp_path):
    asked, said = CHAT
    messages = [
        asked | {"name": "Ada", "weight": None},
        said | {"weight": 0},
        asked,
        said | {"weight": 1.0, "tool_calls": []},
    ]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}))
    [document] = read_all(LocalSource(tmp_path, "*"))
    assert document.messages == [asked, said, asked, said]
    assert document.unlearnt == (1,)
    again = {"messages": messages_as_stored(document)}
    assert document_of_row(again, "again", "a.jsonl:1") == document


def damaged_text(path, column):
    """A file whose second row of `column` is Latin-1."""
    texts = [pyarrow.array(["one", "two", "three"])] * 2
    wrong = pyarrow.array([b"one", b"caf\xe9", b"three"]).cast(pyarrow.string(), safe=False)
    names = ["text", column]
    table = pyarrow.table([wrong if name == column else text for name, text in zip(names, texts, strict=True)], names)
    pyarrow.parquet.write_table(table, path)


@pytest.mark.parametrize("column", ["license", "source", "category"])
def test_parquet_text_that_is_not_utf8_is_named_by_row_and_column(tmp_path, column):
    damaged_text(tmp_path / "a.parquet", column)
    with pytest.raises(DataError, match=rf"a\.parquet, row 2, holds text in '{column}' that is not UTF-8"):
        read_all(LocalSource(tmp_path, "*"))


def test_parquet_columns_that_nobody_asks_for_do_not_matter(tmp_path):
    damaged_text(tmp_path / "a.parquet", "url")
    assert [document.text for document in read_all(LocalSource(tmp_path, "*"))] == ["one", "two", "three"]


def test_a_damaged_parquet_page_is_an_error_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(retry.time, "sleep", lambda _: pytest.fail("it was tried again"))
    path = tmp_path / "a.parquet"
    rows = [{"text": f"{number} " * 50} for number in range(3000)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, compression="snappy")
    whole = path.read_bytes()
    for place in range(4, len(whole), len(whole) // 40):
        path.write_bytes(whole[:place] + bytes(30) + whole[place + 30 :])
        with suppress(DataError):
            read_all(LocalSource(tmp_path, "*"))
    path.write_bytes(whole[:200] + bytes(30) + whole[230:])
    with pytest.raises(DataError, match=rf"^{path} is damaged \(after row 0\): [^\n]*$"):
        read_all(LocalSource(tmp_path, "*"))


@pytest.mark.parametrize(
    "column",
    [
        [datetime.datetime(2020, 1, 1)],
        [{"a": 1}],
        [[1, 2]],
        [decimal.Decimal("1.5")],
        [b"\xff"],
        [True],
        pyarrow.array([2**62], pyarrow.timestamp("us")),
        pyarrow.array([[("a", "b")]], pyarrow.map_(pyarrow.string(), pyarrow.string())),
    ],
)
@pytest.mark.parametrize("name", ["text", "source", "messages"])
def test_parquet_of_other_types_is_one_sentence(tmp_path, name, column):
    columns = {"text": ["x"]} | {name: column}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet"):
        read_all(LocalSource(tmp_path, "*"))


def test_bytes_that_are_no_text_are_an_error(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc\xff")
    with pytest.raises(DataError, match="not UTF-8 text at byte 3"):
        read_all(LocalSource(tmp_path, "*"))


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.txt.gz"])
def test_an_endless_line_is_refused_before_it_fills_the_memory(tmp_path, name, monkeypatch):
    monkeypatch.setattr(shards, "MAX_DOCUMENT_BYTES", 1000)
    monkeypatch.setattr(shards, "MAX_LINE_BYTES", 1000)
    write(tmp_path / name, b"x" * 10_000)
    with pytest.raises(DataError, match="longer than 1000 bytes"):
        read_all(LocalSource(tmp_path, "*"))
