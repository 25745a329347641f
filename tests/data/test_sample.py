"""Promises of data.sample, and of the two samples that are committed."""

import json
from collections import Counter

import pytest

from mobilemoe.data.config import DataConfig
from mobilemoe.data.sample import write_sample
from mobilemoe.data.sources import HOLDOUT, LocalSource, is_held_out
from mobilemoe.errors import DataError
from places import HELDOUT, TRAINING_TEXT

DOMAINS = {"books", "textbooks", "code", "specs", "docs", "chat"}
SAMPLES = sorted(f"{domain}-00.jsonl" for domain in DOMAINS)  # beside them lies talk-00.jsonl, written by hand


def read(folder, pattern):
    source = LocalSource(folder, pattern)
    return [document for shard in range(len(source.shards)) for document in source.documents(shard)]


def taught(document):
    if document.text is not None:
        return document.text
    return "\n".join(message["content"] for message in document.messages if message["role"] == "assistant")


def windows(document):
    text = taught(document)
    return {hash(text[start : start + 200]) for start in range(len(text) - 199)}


def test_every_committed_held_out_entry_is_held_out_by_default_and_no_training_entry_is():
    assert all(is_held_out(document, HOLDOUT) for document in read(HELDOUT.parent, HELDOUT.name))
    assert not any(is_held_out(document, HOLDOUT) for document in read(TRAINING_TEXT, SAMPLES))


def test_no_200_characters_of_held_out_text_are_in_the_training_sample():
    held = set().union(*map(windows, read(HELDOUT.parent, HELDOUT.name)))
    assert len(held) > 300_000
    assert all(held.isdisjoint(windows(document)) for document in read(TRAINING_TEXT, SAMPLES))


def test_the_committed_samples_are_small_and_balanced():
    entries = [json.loads(line) for line in HELDOUT.read_text(encoding="utf-8").splitlines()]
    size = Counter()
    for entry in entries:
        size[entry["domain"]] += len(json.dumps(entry, ensure_ascii=False).encode())
        assert entry["license"]
        assert entry["source"]
    for shares in (size, {name[: -len("-00.jsonl")]: (TRAINING_TEXT / name).stat().st_size for name in SAMPLES}):
        assert set(shares) == DOMAINS
        assert sum(shares.values()) <= 490_000
        assert min(shares.values()) > 0.9 * max(shares.values())


@pytest.fixture
def config(tmp_path):
    shared = "This paragraph stands in every document of both splits, as a licence does. " * 4
    rows = [{"text": f"{n}: " + f"word{n} " * 100, "source": f"own {n}", "license": "MIT"} for n in range(200)]
    rows += [{"text": shared + f"{n} " * 50, "source": f"copy {n}", "license": "MIT"} for n in range(200)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mixture = [{"name": "a", "files": "a.jsonl", "weight": 1}]
    return DataConfig(path=str(tmp_path), seed=0, holdout=0.1, mixture=mixture)


def test_copies_of_training_text_are_left_out_of_the_held_out_sample(config, tmp_path):
    write_sample(config, tmp_path, tmp_path / "held.jsonl", 10_000, "heldout")
    found = read(tmp_path, "held.jsonl")
    assert len(found) > 5
    assert all(document.source.startswith("own") for document in found)
    assert (tmp_path / "held.jsonl").stat().st_size <= 10_000


def test_a_sample_is_the_same_each_time_and_never_overwrites_a_folder(config, tmp_path):
    for name in ("one", "two"):
        write_sample(config, tmp_path, tmp_path / name, 5000, "train")
    assert (tmp_path / "one" / "a-00.jsonl").read_bytes() == (tmp_path / "two" / "a-00.jsonl").read_bytes()
    with pytest.raises(DataError, match="exists already"):
        write_sample(config, tmp_path, tmp_path / "one", 5000, "train")


def test_a_source_without_an_excerpt_is_named(config, tmp_path):
    with pytest.raises(DataError, match="source 'a' has no excerpt"):
        write_sample(config, tmp_path, tmp_path / "held.jsonl", 10, "heldout")
