"""Promises of data.stream and data.mixture: one seed, one order; nothing lost in an epoch; exact proportions."""

import gzip
import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mobilemoe.data import stream as stream_module
from mobilemoe.data.config import DataConfig
from mobilemoe.data.mixture import Mixture, build_mixture
from mobilemoe.data.sources import Document, LocalSource
from mobilemoe.data.stream import PieceStream, Position, StreamConfig, cut_document, cut_text
from mobilemoe.errors import DataError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(stream_module, "BLOCK_CHARS", 8000)
    for shard in range(4):
        rows = [{"text": f"s{shard} d{row} " + "word " * (row * 7), "source": f"{shard}/{row}"} for row in range(11)]
        (tmp_path / f"a-{shard}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def open_stream(folder, seed=1, split="train", holdout=0.2):
    return PieceStream(LocalSource(folder, "a-*.jsonl"), StreamConfig("a", seed, split, holdout, piece_chars=100))


def take_epoch(stream):
    pieces = []
    while True:
        piece = next(stream)
        if stream.position.epoch > 0:
            return pieces
        pieces.append(piece)


def test_an_epoch_gives_every_piece_of_the_split_once(folder):
    source = LocalSource(folder, "a-*.jsonl")
    pieces = [p for shard in range(4) for d in source.documents(shard) for p in cut_document(d, 100)]
    found = [take_epoch(open_stream(folder, split=split)) for split in ("train", "heldout")]
    assert Counter(p.text for half in found for p in half) == Counter(p.text for p in pieces)
    assert {p.source for p in found[0]}.isdisjoint(p.source for p in found[1])
    assert found[1]


def test_epochs_and_seeds_have_orders_of_their_own(folder):
    stream = open_stream(folder)
    first = [piece.text for piece in take_epoch(stream)]
    stream.seek(Position(epoch=1))
    second = [next(stream).text for _ in first]
    other = [piece.text for piece in take_epoch(open_stream(folder, seed=2))]
    assert sorted(first) == sorted(second) == sorted(other)
    assert first != second
    assert first != other
    assert [piece.text for piece in take_epoch(open_stream(folder))] == first


def test_a_stream_goes_on_from_any_position(folder):
    stream = open_stream(folder)
    positions, pieces = [], []
    for _ in range(250):  # into the third epoch
        positions.append(stream.position)
        pieces.append(next(stream))
    for start in range(0, 240, 7):
        again = open_stream(folder)
        again.seek(positions[start])
        assert [next(again) for _ in range(10)] == pieces[start : start + 10]


def test_the_order_is_the_one_that_checkpoints_count_in(folder):
    stream = open_stream(folder)
    assert [next(stream).source for _ in range(6)] == ["0/9", "2/9", "3/6", "0/6", "3/10", "3/8"]


def distance(pieces, everything):
    """Total variation between the folders (the first part of `source`) of some pieces and of all."""
    seen, there = (Counter(p.source.split("/")[0] for p in some) for some in (pieces, everything))
    return sum(abs(seen[name] / len(pieces) - count / len(everything)) for name, count in there.items()) / 2


def documents_by_folder(folders, each):
    for number in range(folders):
        for row in range(each):
            yield {"text": f"{number} {row} " + "word " * 40, "source": f"{number:02d}/{row}"}


def one_file(root):
    rows = documents_by_folder(30, 60)
    (root / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def one_packed_file(root):
    rows = documents_by_folder(30, 60)
    with gzip.open(root / "a.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def a_file_for_each_folder(root):
    for row in documents_by_folder(30, 60):
        with (root / f"{row['source'][:2]}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


def files_in_folders(root):
    for row in documents_by_folder(30, 20):
        path = root / f"{row['source']}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(row["text"])


@pytest.mark.parametrize("store", [one_file, one_packed_file, a_file_for_each_folder, files_in_folders])
def test_a_short_run_sees_every_folder_as_a_sample_would(tmp_path, monkeypatch, store):
    monkeypatch.setattr(stream_module, "BLOCK_CHARS", 120_000)  # a seventh of the text
    store(tmp_path)
    stream = PieceStream(LocalSource(tmp_path, "**/*.*"), StreamConfig("a", 5, "train", 0.0, piece_chars=500))
    pieces = take_epoch(stream)
    few = len(pieces) // 10
    dice = random.Random(0)
    samples = [distance(dice.sample(pieces, few), pieces) for _ in range(50)]
    assert distance(sorted(pieces, key=lambda piece: piece.source)[:few], pieces) > 0.8
    for start in (0, few, 5 * few):
        assert distance(pieces[start : start + few], pieces) < 1.2 * max(samples)


def test_of_files_too_large_to_read_often_many_are_read_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setattr(stream_module, "BLOCK_CHARS", 8_000)  # 8 rounds of it are a tenth of the text
    a_file_for_each_folder(tmp_path)
    stream = PieceStream(LocalSource(tmp_path, "*"), StreamConfig("a", 5, "train", 0.0, piece_chars=500))
    pieces = take_epoch(stream)
    assert len(pieces) == 30 * 60
    first = Counter(piece.source[:2] for piece in pieces[:80])
    assert len(first) == 16
    assert max(first.values()) < 15


def test_shards_of_any_size_end_together(tmp_path):
    for name, count in (("long", 600), ("short", 60), ("shorter", 20)):
        rows = [{"text": f"{name} {row} " + "word " * 40, "source": name} for row in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stream = PieceStream(LocalSource(tmp_path, "*"), StreamConfig("a", 0, "train", 0.0, piece_chars=500))
    stored = [piece.source for _, piece in stream._read_window(0, 0)]
    assert Counter(stored[:68])["long"] == pytest.approx(60, abs=2)
    assert {"long", "short", "shorter"} == set(stored[-70:])


def test_small_files_share_a_block(tmp_path):
    for number in range(30):
        (tmp_path / f"{number:02d}.txt").write_text("".join(f"{number}-{line}\n" * 20 for line in range(10)))
    stream = PieceStream(LocalSource(tmp_path, "*.txt"), StreamConfig("a", 0, "train", 0.0, piece_chars=100))
    assert len({next(stream).source for _ in range(20)}) > 8


def test_a_split_without_text_is_an_error_not_an_endless_search(folder):
    with pytest.raises(DataError, match="heldout split"):
        next(open_stream(folder, split="heldout", holdout=0.0))


@pytest.mark.parametrize(
    "position",
    [Position(0, -1), Position(0, 9), Position(0, 0, 2**64), Position(0, 0, 0, 999), Position(0, 0, 0, 0, 99)],
)
def test_a_position_that_cannot_be_is_an_error(folder, position):
    stream = open_stream(folder)
    with pytest.raises(DataError, match="the state is damaged"):
        stream.seek(position) or next(stream)


@given(st.text(alphabet="ab \n", max_size=300), st.integers(16, 60))
def test_pieces_join_to_the_text_and_keep_the_limit(text, limit):
    pieces = cut_text(text, limit)
    assert "".join(pieces) == text
    assert all(len(piece) <= limit for piece in pieces)
    assert all(len(piece) >= limit // 2 for piece in pieces[:-1])


def test_a_text_is_cut_where_a_paragraph_ends():
    text = "one two three.\n\nfour five six seven.\nEight."
    assert cut_text(text, 26) == ["one two three.\n\n", "four five six seven.\n", "Eight."]
    pieces = list(cut_document(Document(text, None, "s", "k"), 26))
    assert [piece.ends for piece in pieces] == [False, False, True]


class NoStream:
    """A mixture's arithmetic needs no text."""


@given(
    st.lists(st.floats(0.01, 10), min_size=1, max_size=6),
    st.lists(st.integers(1, 2000), min_size=1, max_size=400),
)
def test_no_source_is_far_from_its_share(weights, lengths):
    named = {str(index): weight for index, weight in enumerate(weights)}
    mixture = Mixture({name: NoStream() for name in named}, named)
    for length in lengths:
        mixture.record(mixture.pick(), length)
    total = sum(lengths)
    for name, tokens in mixture.tokens.items():
        assert abs(tokens - mixture.shares[name] * total) <= len(weights) * max(lengths)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mixture": []}, "at least 1"),
        ({"mixture": [{"name": "a", "weight": 1}]}, "either files or hub"),
        ({"mixture": [{"name": "a", "weight": 1, "files": "*", "hub": "x/y"}]}, "either files or hub"),
        ({"mixture": [{"name": "a", "weight": 1, "files": "*", "subset": "x"}]}, "belong to a hub source"),
        ({"mixture": [{"name": "a", "weight": 0, "files": "*"}]}, "greater than 0"),
        ({"mixture": [{"name": "a", "weight": 1, "files": "*"}] * 2}, "two sources are named 'a'"),
        ({"mixtures": []}, "Extra inputs"),
        ({"holdout": 1}, "less than 1"),
    ],
)
def test_a_config_that_cannot_work_is_refused(change, said):
    good = {"path": "x", "seed": 0, "mixture": [{"name": "a", "weight": 1, "files": "*"}]}
    DataConfig(**good)
    with pytest.raises(ValidationError, match=said):
        DataConfig(**{**good, **change})


def test_a_missing_folder_or_split_is_named(tmp_path):
    config = DataConfig(path="nowhere", seed=0, mixture=[{"name": "a", "weight": 1, "files": "*"}])
    with pytest.raises(DataError, match="nowhere does not exist"):
        build_mixture(config, tmp_path)
    with pytest.raises(DataError, match="the split 'test' is unknown"):
        build_mixture(config, tmp_path, split="test")
