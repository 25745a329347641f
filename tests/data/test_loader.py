"""Promises of data.loader: resumed runs see the same batches, proportions hold, another state is refused."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from byte_corpus import (
    BOS,
    END,
    EOT,
    HEADER,
    HEADER_END,
    WEIGHTS,
    ByteTokenizer,
    assert_same,
    open_loader,
    write_corpus,
)
from mobilemoe.data import loader as loader_module
from mobilemoe.data import stream as stream_module
from mobilemoe.data.packing import NO_TARGET
from mobilemoe.errors import DataError
from places import HELPERS


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(stream_module, "BLOCK_CHARS", 12_000)
    monkeypatch.setattr(loader_module, "READ_AHEAD", 7)
    (tmp_path / "data").mkdir()
    write_corpus(tmp_path / "data")
    return tmp_path


@pytest.mark.parametrize("train_on", ["all", "assistant"])
@pytest.mark.parametrize("sequence_length", [2, 64, 1000])
def test_a_loader_resumes_bit_for_bit_anywhere(root, sequence_length, train_on):
    loader = open_loader(root, sequence_length=sequence_length, train_on=train_on)
    steps = 60_000 // (2 * sequence_length) if sequence_length > 2 else 400
    states, batches, counts = [], [], []
    for _ in range(steps):
        states.append(json.loads(json.dumps(loader.state_dict())))
        counts.append({name: count["tokens"] for name, count in loader.counts.items()})
        batches.append(next(loader))
    assert any(state["open_piece"] for state in states)
    waiting = any(state["open_piece"] and state["open_piece"]["used"] == 0 for state in states)
    assert waiting == (train_on == "assistant" and sequence_length > 2)  # in rows of two nothing fits whole
    assert all(len(json.dumps(state)) < 2000 for state in states)
    starts = np.random.default_rng(0).choice(steps - 5, 12, replace=False)
    for start in [0, *starts.tolist()]:
        again = open_loader(root, sequence_length=sequence_length, train_on=train_on)
        again.load_state_dict(states[start])
        assert again.state_dict() == states[start]
        assert {name: count["tokens"] for name, count in again.counts.items()} == counts[start]
        for batch in batches[start : start + 5]:
            assert_same(next(again), batch)


def test_a_used_loader_can_go_back(root):
    loader = open_loader(root)
    next(loader)
    state = loader.state_dict()
    after = [next(loader) for _ in range(20)]
    loader.load_state_dict(state)
    for batch in after:
        assert_same(next(loader), batch)


def test_epochs_repeat_and_are_counted(root):
    loader = open_loader(root, batch_size=8, sequence_length=1000)
    for _ in range(20):
        next(loader)
    assert all(count["epochs"] >= 1 for count in loader.counts.values())


def test_read_ahead_changes_no_batch(root, monkeypatch):
    few = [next(loader) for loader in [open_loader(root)] for _ in range(30)]
    monkeypatch.setattr(loader_module, "READ_AHEAD", 50)
    many = [next(loader) for loader in [open_loader(root)] for _ in range(30)]
    for a, b in zip(few, many, strict=True):
        assert_same(a, b)


def test_tokens_come_in_the_proportions_of_the_weights(root):
    loader = open_loader(root, batch_size=8, sequence_length=1000)
    for _ in range(20):
        next(loader)
    total = sum(count["tokens"] for count in loader.counts.values())
    for name, weight in WEIGHTS.items():
        assert abs(loader.counts[name]["tokens"] / total - weight) < 0.01


def test_every_segment_is_one_framed_document(root):
    loader = open_loader(root, batch_size=1, sequence_length=20_000)
    batch = next(loader)
    tokens, segments = batch.tokens_BT[0], batch.segments_BT[0]
    assert batch.tokens_BT.shape == (1, 20_000)
    assert all(array.dtype == np.int64 for array in batch)
    seen = set()
    for number in range(segments[-1]):  # the last one is cut by the row's end
        ids = tokens[segments == number].tolist()
        assert ids[0] == BOS
        assert BOS not in ids[1:]
        if HEADER in ids:
            assert ids[-1] == EOT
            assert ids.count(HEADER) == ids.count(HEADER_END) == 2
            seen.add("chat")
        else:
            assert END not in ids[:-1]
            seen.add("whole" if ids[-1] == END else "piece")
    assert seen == {"chat", "whole", "piece"}
    crossing = batch.targets_BT[0] != NO_TARGET
    np.testing.assert_array_equal(batch.targets_BT[0][:-1][crossing[:-1]], tokens[1:][crossing[:-1]])
    assert not crossing[:-1][segments[1:] != segments[:-1]].any()


def test_every_token_knows_its_source(root):
    loader = open_loader(root, batch_size=4, sequence_length=500)
    assert loader.domains == ("books", "code", "chat")
    shown = dict.fromkeys(loader.domains, b"")
    for _ in range(3):
        batch = next(loader)
        assert batch.domains_BT.shape == batch.tokens_BT.shape
        for number, name in enumerate(loader.domains):
            ids = batch.tokens_BT[batch.domains_BT == number]
            shown[name] += bytes(ids[ids < BOS].astype(np.uint8).tolist())
    for name, word in (("books", b"Book"), ("code", b"def f"), ("chat", b"assistant")):
        assert [other for other in shown if word in shown[other]] == [name]


def test_a_conversation_teaches_what_the_assistant_writes_and_a_text_everything(root):
    loader = open_loader(root, batch_size=8, sequence_length=200, train_on="assistant")
    answers = set()
    for _ in range(10):
        batch = next(loader)
        chat = loader.domains.index("chat")
        for row in range(8):
            segments = batch.segments_BT[row]
            for number in range(segments[-1] + 1):
                inside = segments == number
                tokens, targets = batch.tokens_BT[row][inside], batch.targets_BT[row][inside]
                taught = targets[targets != NO_TARGET].tolist()
                if batch.domains_BT[row][inside][0] != chat:
                    assert taught == tokens[1:].tolist()
                elif taught:
                    assert tokens[0] == BOS
                    assert tokens[-1] == EOT
                    assert taught[-1] == EOT
                    answers.add(bytes(taught[:-1]).decode())
                else:
                    assert inside[-1]
                    assert number == segments[-1]
    assert len(answers) > 40
    assert answers <= {f"{n} + {n} is {n + n}." for n in range(90)}


SCRIPT = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from byte_corpus import open_loader
loader = open_loader(sys.argv[2])
print(hashlib.sha256(b"".join(next(loader).tokens_BT.tobytes() for _ in range(40))).hexdigest())
"""


def test_every_process_sees_the_same_batches(root, request):
    command = [sys.executable, "-c", SCRIPT, str(HELPERS), str(root)]
    found = {
        subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("0", "1")
    }
    assert len(found) == 1
    assert found != {""}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 4}, "seed was 3 and is 4"),
        ({"sequence_length": 32}, "sequence_length was 64 and is 32"),
        ({"split": "heldout"}, "split was 'train' and is 'heldout'"),
        ({"holdout": 0.2}, "holdout was 0.1"),
        ({"piece_chars": 200}, "piece_chars was 300"),
        ({"train_on": "assistant"}, "train_on was 'all' and is 'assistant'"),
        ({"mixture": [{"name": "books", "files": "books-*", "weight": 1}]}, "source chat was .* and is None"),
        ({"mixture": [{"name": n, "files": f"{n}-*", "weight": 1} for n in WEIGHTS]}, "source books was .*share 0.5"),
    ],
)
def test_a_state_of_other_data_is_refused_with_the_difference(root, changes, said):
    state = open_loader(root).state_dict()
    with pytest.raises(DataError, match=said):
        open_loader(root, **changes).load_state_dict(state)


def test_a_state_of_another_tokenizer_or_changed_files_is_refused(root):
    class Shifted(ByteTokenizer):
        def encode_batch(self, texts):
            return [[255 - byte for byte in text.encode()] for text in texts]

    state = open_loader(root).state_dict()
    with pytest.raises(DataError, match="tokenizer was"):
        open_loader(root, tokenizer=Shifted()).load_state_dict(state)
    (root / "data" / "books-9.jsonl").write_text('{"text": "new"}\n')
    with pytest.raises(DataError, match=r"source books was '3 shards.* and is '4 shards"):
        open_loader(root).load_state_dict(state)


@pytest.mark.parametrize(
    "damage",
    [
        {"version": 0},
        {"positions": {}},
        {"tokens": None},
        {"open_piece": {"source": "nobody", "used": 1}},
        {"open_piece": {"source": "code", "used": 10**6}},
        {"positions": {name: [0, 99, 0, 0] for name in WEIGHTS}},
    ],
)
def test_a_damaged_state_is_an_error(root, damage):
    loader = open_loader(root)
    next(loader)
    with pytest.raises(DataError, match=r"damaged|begin a new run"):
        open_loader(root).load_state_dict({**loader.state_dict(), **damage})


def test_a_tokenizer_without_the_control_tokens_is_refused(root):
    tokenizer = ByteTokenizer()
    tokenizer.bos_id = None
    with pytest.raises(DataError, match="no begin-of-text"):
        open_loader(root, tokenizer=tokenizer)


def test_a_batch_must_hold_something(root):
    with pytest.raises(DataError, match="too small"):
        open_loader(root, batch_size=0)
