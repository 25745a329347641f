"""Promises of data.retry: a passing fault costs a wait and no row; one that stays stops with the shard and row."""

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
