"""Promises of data.retry: a temporary fault costs time and no row; a lasting one stops with the shard and row."""

import errno
import json
import random

import pytest

from mobilemoe.data import retry, sources
from mobilemoe.data.retry import read_patiently
from mobilemoe.data.sources import HubSource, LocalSource
from mobilemoe.errors import DataError

ROWS = [{"text": f"text {number}"} for number in range(60)]


@pytest.fixture
def slept(monkeypatch):
    waits = []
    monkeypatch.setattr(retry.time, "sleep", waits.append)
    return waits


def shaky(seed, chance=0.05):
    """Rows that fail to open or to go on now and then, each time elsewhere."""
    dice = random.Random(seed)

    def read(*_):
        if dice.random() < 0.2:
            raise OSError("the mount is gone")
        for number, row in enumerate(ROWS, 1):
            if dice.random() < chance:
                raise ConnectionResetError("reset by peer")
            yield number, row

    return read


def test_a_source_that_fails_at_random_gives_every_document_once_in_order(tmp_path, monkeypatch, slept):
    monkeypatch.setattr(retry, "WAITS", (0.0,) * 200)
    (tmp_path / "a.jsonl").write_text("{}")
    for seed in range(10):
        monkeypatch.setattr(sources, "read_json_lines", shaky(seed))
        found = list(LocalSource(tmp_path, "a.jsonl").documents(0))
        assert [document.text for document in found] == [row["text"] for row in ROWS]
        assert [document.key for document in found] == [f"a.jsonl:{number}" for number in range(1, 61)]
    assert len(slept) > 50


def test_attempts_wait_longer_each_time_and_are_free_again_after_a_row(slept):
    left = [3, 3]

    def read():
        for number in range(4):
            if number in (1, 3) and left[number // 2]:
                left[number // 2] -= 1
                raise TimeoutError
            yield number, number

    assert [row for _, row in read_patiently(read, "a")] == [0, 1, 2, 3]
    assert slept == [*retry.WAITS, *retry.WAITS]
    assert sorted(set(slept)) == list(retry.WAITS)


def test_what_is_waited_for_is_said_once_until_a_row_arrives(slept, capsys):
    left = [3, 2]

    def read():
        for number in range(2):
            if left[number]:
                left[number] -= 1
                raise OSError(errno.ENOENT, "No such file or directory", "a.jsonl")
            yield number + 1, number

    assert len(list(read_patiently(read, "data/a.jsonl"))) == 2
    first, second = capsys.readouterr().err.splitlines()
    said = "(No such file or directory): waiting for it, with new attempts after 1, 5, 25 seconds"
    assert first == f"mobilemoe: data/a.jsonl cannot be read after row 0 {said}"
    assert second == f"mobilemoe: data/a.jsonl cannot be read after row 1 {said}"
    assert len(slept) == 5


def test_a_file_that_is_deleted_under_a_run_is_waited_for_and_one_that_never_was_is_not(tmp_path, slept, capsys):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"text": "x"}\n')
    source = LocalSource(tmp_path, ["a.jsonl", "b.jsonl"])
    (tmp_path / "b.jsonl").unlink()
    assert len(list(source.documents(0))) == 1
    with pytest.raises(DataError, match=r"b\.jsonl cannot be read .* 4 attempts failed: No such file or directory$"):
        list(source.documents(1))
    assert slept == [*retry.WAITS]
    assert "b.jsonl" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"no file matches 'b\.jsonl'"):
        LocalSource(tmp_path, ["a.jsonl", "b.jsonl"])
    assert slept == [*retry.WAITS]


def test_a_fault_that_stays_stops_with_shard_and_row(slept):
    def read():
        yield 7, "row"
        raise OSError("stale file handle\nand more")

    rows = read_patiently(read, "books-03.jsonl")
    assert next(rows) == (7, "row")
    with pytest.raises(
        DataError, match=r"^books-03\.jsonl cannot be read after row 7, 4 attempts .*: stale file handle$"
    ):
        next(rows)
    assert len(slept) == 3


def test_damage_is_not_read_again(tmp_path, slept):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{')
    with pytest.raises(DataError, match="line 2"):
        list(LocalSource(tmp_path, "a.jsonl").documents(0))
    assert slept == []


def test_a_hub_dataset_whose_network_fails_goes_on_at_the_same_row(tmp_path, slept):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    source = HubSource("json", data_files=str(tmp_path / "a.jsonl"))
    read, dice = source._dataset, random.Random(3)

    class Flaky:
        def shard(self, **place):
            for row in read.shard(**place):
                if dice.random() < 0.02:
                    raise RuntimeError("server disconnected")  # what aiohttp raises is no OSError
                yield row

    source._dataset = Flaky()
    assert [document.text for document in source.documents(0)] == [row["text"] for row in ROWS]
    assert slept
