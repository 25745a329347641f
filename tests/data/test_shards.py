"""Which files a pattern matches: each once, in order, and no hidden files, backups or checksums."""

import os
from glob import escape

import pytest

from mobilemoe.data.config import DataConfig
from mobilemoe.data.mixture import build_sources
from mobilemoe.data.sources import LocalSource
from mobilemoe.errors import DataError
from source_files import LINES, write


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


BESIDE = (
    "._a.jsonl .a.jsonl.swp a.jsonl~ #a.jsonl# a.jsonl.bak a.jsonl.orig A.JSONL.OLD a.jsonl.lock a.jsonl.idx .DS_Store "
    "a.jsonl.sha256 a.jsonl.md5 Thumbs.db desktop.ini a.jsonl.part .ipynb_checkpoints/a-checkpoint.jsonl .git/x.jsonl"
)


@pytest.mark.parametrize("pattern", ["*", "**/*", "*.jsonl*", ["*", "*.jsonl"]])
def test_what_stands_beside_the_data_is_no_data(tmp_path, pattern):
    for name in [*BESIDE.split(), "a.jsonl", "b.jsonl"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("not data")
    assert LocalSource(tmp_path, pattern).shards == ["a.jsonl", "b.jsonl"]
    (tmp_path / "a.csv").write_text("x")  # may have been meant
    with pytest.raises(DataError, match=r"a\.csv is of no known kind"):
        LocalSource(tmp_path, "*")


def test_a_hidden_folder_may_be_meant(tmp_path):
    for name in (".store/a.jsonl", ".store/a.jsonl~", "b.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert LocalSource(tmp_path, ".store/*").shards == [".store/a.jsonl"]
    assert LocalSource(tmp_path, "**/*.jsonl").shards == ["b.jsonl"]


def test_a_hidden_file_is_read_by_its_own_name_alone(tmp_path):
    name = ".a[1].jsonl"
    (tmp_path / name).write_text('{"text": "x"}')
    assert LocalSource(tmp_path, escape(name)).shards == [name]
    with pytest.raises(
        DataError, match=r"no file matches '\*' in .*, but a hidden file or a backup does, \.a\[1\]\.jsonl"
    ):
        LocalSource(tmp_path, "*")


def test_a_file_and_the_same_packed_are_read_once(tmp_path):
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "b.jsonl.gz", "b.jsonl.zst", "c.txt", "c.jsonl"):
        write(tmp_path / name, LINES)
    assert LocalSource(tmp_path, ["*.gz", "*"]).shards == ["a.jsonl", "b.jsonl.gz", "c.jsonl", "c.txt"]


def test_of_a_pattern_and_the_same_packed_one_has_to_match(tmp_path):
    write(tmp_path / "a.jsonl.gz", LINES)
    (tmp_path / "a.jsonl.parts").write_text("x")
    assert LocalSource(tmp_path, ["*.jsonl", "*.jsonl.gz", "*.jsonl.zst"]).shards == ["a.jsonl.gz"]
    with pytest.raises(DataError, match=r"no file matches 'b-\*\.jsonl'"):
        LocalSource(tmp_path, ["*.jsonl.gz", "b-*.jsonl", "b-*.jsonl.gz"])


@pytest.mark.parametrize("pattern", ["", "a**", ["*", ""], "a\0b"])
def test_a_pattern_that_is_none_is_one_sentence(tmp_path, pattern):
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(DataError, match="pattern"):
        LocalSource(tmp_path, pattern)


@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to(path), lambda path: path.symlink_to("x")]
)
def test_what_is_no_file_is_no_data(tmp_path, make):
    make(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"no file matches 'a\.jsonl'"):
        LocalSource(tmp_path, "a.jsonl")
    config = DataConfig(path="a.jsonl", seed=0, mixture=[{"name": "a", "weight": 1, "files": "*"}])
    with pytest.raises(DataError, match=r"is neither a file nor a folder|no file matches"):
        build_sources(config, tmp_path)


def test_a_file_whose_name_is_no_text_is_refused(tmp_path):
    with open(os.fsencode(tmp_path) + b"/a\xff.txt", "w") as file:
        file.write("x")
    with pytest.raises(DataError, match="is not UTF-8: rename it"):
        LocalSource(tmp_path, "*")
