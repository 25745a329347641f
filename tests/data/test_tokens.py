"""Promises of data.tokens and data.prepare: shards give what the text gives, to the right tokenizer, or say why not."""

import json
import zipfile
from collections import Counter

import numpy as np
import pytest

from byte_corpus import WEIGHTS, ByteTokenizer, assert_same, make_config, write_corpus
from cli_calls import RECIPE
from mobilemoe.chat import ChatTemplate
from mobilemoe.data import loader as loader_module
from mobilemoe.data import prepare as prepare_module
from mobilemoe.data import shuffle as shuffle_module
from mobilemoe.data import stream as stream_module
from mobilemoe.data.config import DataConfig
from mobilemoe.data.encoding import Encoder, open_tokenizer
from mobilemoe.data.loader import PackedLoader
from mobilemoe.data.mixture import build_mixture
from mobilemoe.data.packing import NO_TARGET
from mobilemoe.data.prepare import prepare
from mobilemoe.data.sample import write_sample
from mobilemoe.data.shuffle import Shuffler
from mobilemoe.data.sources import Encoded
from mobilemoe.data.tokens import TokenSource, read_shard, write_shard
from mobilemoe.errors import DataError

MIXTURE = [{"name": name, "files": f"{name}-*.npz", "weight": weight} for name, weight in WEIGHTS.items()]


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(stream_module, "BLOCK_CHARS", 12_000)
    monkeypatch.setattr(loader_module, "READ_AHEAD", 7)
    monkeypatch.setattr(prepare_module, "SHARD_TOKENS", 2500)
    monkeypatch.setattr(prepare_module, "BATCH_PIECES", 5)
    (tmp_path / "data").mkdir()
    write_corpus(tmp_path / "data")
    prepare(make_config(), tmp_path, tmp_path / "tokens", ByteTokenizer(), ChatTemplate())
    return tmp_path


def open_tokens(root, template=None, sequence_length=64, **changes):
    mixture = build_mixture(make_config(path="tokens", mixture=MIXTURE, **changes), root)
    return PackedLoader(
        mixture, ByteTokenizer(), template or ChatTemplate(), batch_size=2, sequence_length=sequence_length
    )


def epoch(mixture, name):
    """The documents of one epoch as comparable values."""
    stream, found = mixture.streams[name], []
    while True:
        piece = next(stream)
        if stream.position.epoch > 0:
            break
        found.append(piece)
    encoded = Encoder(ByteTokenizer(), ChatTemplate()).encode(found)
    return Counter(
        (tuple(ids_N.tolist()), None if taught_N is None else tuple(taught_N.tolist())) for ids_N, taught_N in encoded
    )


@pytest.mark.parametrize("name", WEIGHTS)
def test_shards_hold_the_pieces_that_training_on_the_text_sees(root, name):
    text = build_mixture(make_config(), root)
    tokens = build_mixture(make_config(path="tokens", mixture=MIXTURE), root)
    assert epoch(tokens, name) == epoch(text, name)
    assert len(TokenSource(root / "tokens", f"{name}-*.npz").shards) > 1


def test_shards_mix_what_was_stored_by_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "SHARD_TOKENS", 4000)
    rows = [{"text": f"{folder} {row:02d}", "source": f"{folder}/{row}"} for folder in "abcdefgh" for row in range(99)]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mixture = [{"name": "all", "files": "all.jsonl", "weight": 1}]

    def folders(out, seed):
        out = tmp_path / out
        config = DataConfig(path=".", seed=seed, holdout=0, mixture=mixture)
        prepare(config, tmp_path, out, ByteTokenizer(), ChatTemplate())
        shards = [read_shard(path) for path in sorted(out.glob("*.npz"))]
        assert sum(len(shard.ends) for shard in shards) == len(rows)
        assert not [path for path in out.iterdir() if path.is_dir()]
        return [[chr(shard.ids[end - 5]) for end in shard.ends] for shard in shards]

    first, *_ = folders("one", 1)
    assert min(Counter(first).values()) > len(first) / 8 / 2
    assert sorted(first) != first
    assert folders("again", 1)[0] == first
    assert folders("other", 2)[0] != first


def test_buckets_on_disk_give_the_order_of_those_in_memory(tmp_path, monkeypatch):
    dice = np.random.default_rng(0)
    pieces = [
        Encoded(dice.integers(0, 2**16, dice.integers(1, 40)), dice.random(1) < 0.5 if number % 3 == 0 else None)
        for number in range(500)
    ]
    pieces = [piece if piece.taught_N is None else Encoded(piece.ids_N[:1], piece.taught_N) for piece in pieces]

    def shuffled(size):
        shuffler = Shuffler(tmp_path, 7, np.uint16, size)
        for piece in pieces:
            shuffler.add(piece)
        on_disk = len(list(tmp_path.iterdir()))
        found = [
            (ids_N.tolist(), None if taught_N is None else taught_N.tolist()) for ids_N, taught_N in shuffler.drain()
        ]
        assert not list(tmp_path.iterdir())
        return on_disk, found

    in_memory = shuffled(0)
    assert in_memory[0] == 0
    monkeypatch.setattr(shuffle_module, "BUFFER_BYTES", 3000)
    monkeypatch.setattr(shuffle_module, "BUCKET_BYTES", 1000)
    assert shuffled(9000) == (10, in_memory[1])
    before = [(ids_N.tolist(), None if taught_N is None else taught_N.tolist()) for ids_N, taught_N in pieces]
    assert sorted(map(repr, before)) == sorted(map(repr, in_memory[1]))
    assert before != in_memory[1]


def test_prepare_says_how_far_it_is_with_each_source(root):
    heard = {}
    prepare(make_config(), root, root / "again", ByteTokenizer(), ChatTemplate(), on_progress=heard.__setitem__)
    index = json.loads((root / "again" / "prepared.json").read_text())
    tokens = {name: source["tokens"] for name, source in index["sources"].items()}
    assert heard == {f"{name}: {what}": n for name, n in tokens.items() for what in ("tokens", "shuffled tokens")}


def test_the_index_says_what_was_prepared(root):
    index = json.loads((root / "tokens" / "prepared.json").read_text())
    assert index["domains"] == list(WEIGHTS)
    assert index["template"] == ChatTemplate().source
    assert "path" not in index["data"]
    for name, entry in index["sources"].items():
        shards = [read_shard(root / "tokens" / shard) for shard in entry["shards"]]
        assert entry["tokens"] == sum(len(shard.ids) for shard in shards)
        assert entry["pieces"] == sum(len(shard.ends) for shard in shards)
        assert entry["conversations"] == sum(int(shard.chat.sum()) for shard in shards)
        assert sum(entry["licenses"].values()) == entry["documents"]
        assert (entry["conversations"] > 0) == (name == "chat")
        assert all(shard.ids.dtype == np.uint16 for shard in shards)


@pytest.mark.parametrize("train_on", ["all", "assistant"])
def test_a_loader_of_shards_resumes_bit_for_bit(root, train_on):
    loader = open_tokens(root, train_on=train_on)
    states, batches = [], []
    for _ in range(300):
        states.append(json.loads(json.dumps(loader.state_dict())))
        batches.append(next(loader))
    for start in range(0, 295, 37):
        again = open_tokens(root, train_on=train_on)
        again.load_state_dict(states[start])
        for batch in batches[start : start + 5]:
            assert_same(next(again), batch)


def test_the_assistants_words_are_known_from_the_shards(root):
    loader = open_tokens(root, sequence_length=500, train_on="assistant")
    batch = next(loader)
    chat = batch.targets_BT[batch.domains_BT == loader.domains.index("chat")]
    said = bytes(chat[(chat != NO_TARGET) & (chat < 256)].tolist()).decode()
    assert " is " in said
    assert "What" not in said


def test_another_tokenizer_or_template_is_refused(root):
    with pytest.raises(
        DataError, match="prepared with another tokenizer or chat template: run `mobilemoe data prepare`"
    ):
        open_tokens(root, template=ChatTemplate("{{ messages[0].content }}"))


def test_shards_are_of_no_use_where_text_is_needed(root):
    config = make_config(path="tokens", mixture=MIXTURE)
    with pytest.raises(DataError, match="source 'books' is prepared, but text is needed"):
        prepare(config, root, root / "again", ByteTokenizer(), ChatTemplate())
    with pytest.raises(DataError, match="source 'books' is prepared"):
        write_sample(config, root, root / "sample", 1000, "train")
    with pytest.raises(DataError, match="heldout split"):
        next(build_mixture(config, root, "heldout").streams["books"])


def test_a_folder_is_whole_or_absent(root):
    config = make_config(mixture=[*make_config().mixture, {"name": "none", "files": "code-*", "weight": 1}])
    (root / "data" / "code-1.jsonl").write_text('{"text": 3}\n')
    with pytest.raises(DataError, match="line 1"):
        prepare(config, root, root / "other", ByteTokenizer(), ChatTemplate())
    assert not (root / "other").exists()
    assert not list(root.glob(".other*"))
    with pytest.raises(DataError, match="exists already"):
        prepare(make_config(), root, root / "tokens", ByteTokenizer(), ChatTemplate())


@pytest.mark.parametrize("large", [False, True])
def test_a_shard_reads_as_it_was_written(tmp_path, large):
    dice = np.random.default_rng(0)
    pieces = []
    for number in range(40):
        ids = dice.integers(0, 100_000 if large else 65_536, dice.integers(1, 50))
        pieces.append(Encoded(ids, dice.random(len(ids)) < 0.5 if number % 2 else None))
    write_shard(tmp_path / "a-00000.npz", pieces, 100_000 if large else 65_536)
    (tmp_path / "prepared.json").write_text('{"version": 2, "tokenizer": "x"}')
    found = list(TokenSource(tmp_path, "a-*.npz").documents(0))
    for document, piece in zip(found, pieces, strict=True):
        np.testing.assert_array_equal(document.encoded.ids_N, piece.ids_N)
        assert (document.encoded.taught_N is None) == (piece.taught_N is None)
        if piece.taught_N is not None:
            np.testing.assert_array_equal(document.encoded.taught_N, piece.taught_N)


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 255
    path.write_bytes(data)


def rewrite(**changes):
    def damage(path):
        np.savez_compressed(path, **(read_shard(path)._asdict() | changes))

    return damage


def pickled(path):
    np.savez_compressed(
        path, **(read_shard(path)._asdict() | {"chat": np.array([{}], dtype=object)}), allow_pickle=True
    )


def empty(path):
    zipfile.ZipFile(path, "w").close()


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        flip,
        pickled,
        empty,
        lambda path: path.write_bytes(b""),
        rewrite(ids=np.zeros(3)),
        rewrite(ends=np.array([5, 3])),
        rewrite(runs=np.array([[3, 10**9]])),
        rewrite(runs=np.array([[-3, 2]])),
        rewrite(runs=np.array([[5, 9], [7, 12]])),
        rewrite(chat=np.zeros(1, dtype=bool)),
    ],
)
def test_a_damaged_shard_is_one_sentence_that_names_it(root, damage):
    name = "chat-00000.npz"
    damage(root / "tokens" / name)
    with pytest.raises(DataError, match=rf"{name} is damaged"):
        list(TokenSource(root / "tokens", name).documents(0))


def test_shards_that_an_older_version_left_in_the_order_of_their_text_are_refused(root):
    index = json.loads((root / "tokens" / "prepared.json").read_text())
    (root / "tokens" / "prepared.json").write_text(json.dumps(index | {"version": 1}))
    with pytest.raises(DataError, match="was prepared by another version: run `mobilemoe data prepare`"):
        TokenSource(root / "tokens", "books-*.npz")


def test_shards_without_their_index_are_refused(root):
    (root / "tokens" / "prepared.json").unlink()
    with pytest.raises(DataError, match=r"prepared\.json does not exist"):
        TokenSource(root / "tokens", "books-*.npz")


def test_the_verb_prepares_what_a_recipe_then_trains_on(mobilemoe_cli, tmp_path):
    out = tmp_path / "tokens"
    told = mobilemoe_cli("data", "prepare", RECIPE, out, "--json").json
    index = json.loads((out / "prepared.json").read_text())
    assert told["tokens"] == {name: source["tokens"] for name, source in index["sources"].items()}
    assert set(told["tokens"]) == {"books", "textbooks", "code", "specs", "docs", "chat"}
    mixture = [{"name": name, "files": f"{name}-*.npz", "weight": 1} for name in index["domains"]]
    config = DataConfig(path=str(out), seed=0, train_on="assistant", mixture=mixture)
    loader = PackedLoader(build_mixture(config, "/"), *open_tokenizer("nano"), batch_size=2, sequence_length=128)
    assert next(loader).tokens_BT.shape == (2, 128)
    assert mobilemoe_cli("data", "prepare", RECIPE, out).status == 1
