"""Data that other programs wrote are read as they are meant, left out by a stated rule, or refused by name."""

import gzip
import json
import os

import pytest

from mobilemoe.data.shards import read_json_lines
from mobilemoe.data.sources import LocalSource
from mobilemoe.errors import DataError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
zstandard = pytest.importorskip("zstandard")

ASKED = {"role": "user", "content": "Which way?"}
SAID = {"role": "assistant", "content": "To the left."}
ROW = json.dumps({"messages": [ASKED, SAID]}) + "\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 9\n"


def texts(folder, patterns):
    source = LocalSource(folder, patterns)
    return [document.text for shard in range(len(source.shards)) for document in source.documents(shard)]


NAMES = {"gpt": "assistant", "Assistant": "assistant", "assistant ": "assistant", "bot": "assistant"}
NAMES |= {"model": "assistant", "human": "user", "USER": "user", "System": "system"}


@pytest.mark.parametrize("role", NAMES)
def test_a_role_under_another_name_is_named_since_it_would_never_be_learnt(tmp_path, role):
    other = {"role": role, "content": "No, to the right."}
    (tmp_path / "a.jsonl").write_text(ROW + json.dumps({"messages": [ASKED, other]}) + "\n")
    with pytest.raises(
        DataError, match=rf"a\.jsonl, line 2, .*message 1 has the role '{role}': call it '{NAMES[role]}'"
    ):
        texts(tmp_path, "*")


def test_other_roles_are_the_templates_to_know(tmp_path):
    messages = [{"role": role, "content": "x"} for role in ("developer", "tool", "observation", "user")] + [SAID]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}))
    [document] = LocalSource(tmp_path, "*").documents(0)
    assert document.messages == messages


def test_a_message_without_a_role_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": [{"role": " ", "content": "x"}]}))
    with pytest.raises(DataError, match=r"a\.jsonl, line 1, .*message 0 has no role"):
        texts(tmp_path, "*")


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "x"}], "id": 1},
        {"instruction": "x", "input": "", "output": "y"},
        {"prompt": [ASKED], "completion": [SAID]},
    ],
)
def test_a_row_of_another_layout_is_told_with_its_fields(tmp_path, row):
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=r"a\.jsonl, line 1, .*" + ", ".join(sorted(row))):
        texts(tmp_path, "*")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.txt", "a.md", "a.parquet"])
def test_a_pointer_to_a_file_kept_elsewhere_is_no_data(tmp_path, name):
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(DataError, match=rf"{name} is a Git LFS pointer"):
        texts(tmp_path, "*")


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gz", "zst"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_compressed_file_under_another_name_is_called_so(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(ROW.encode()))
    with pytest.raises(DataError, match=rf"{name} is compressed by (gzip|zstd): unpack it"):
        texts(tmp_path, "*")


@pytest.mark.parametrize("outer", [gzip.compress, zstandard.compress], ids=["gz", "zst"])
@pytest.mark.parametrize("inner", [gzip.compress, zstandard.compress], ids=["gz", "zst"])
def test_a_file_that_was_compressed_twice_is_called_so(tmp_path, outer, inner):
    path = tmp_path / ("a.jsonl.gz" if outer is gzip.compress else "a.jsonl.zst")
    path.write_bytes(outer(inner(ROW.encode())))
    with pytest.raises(DataError, match=rf"{path.name} is twice compressed"):
        list(read_json_lines(path))


@pytest.mark.parametrize(
    "name",
    ["~$a.txt", "__MACOSX/a.txt", "@eaDir/a.txt", "$RECYCLE.BIN/a.txt", "lost+found/a.txt", "_SUCCESS", "_metadata"],
)
def test_what_systems_keep_beside_the_data_is_no_data(tmp_path, name):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("words")
    (tmp_path / "data" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "data" / name).write_text("other words")
    assert texts(tmp_path / "data", "**/*") == ["words"]


def test_a_file_of_several_names_is_read_once(tmp_path):
    (tmp_path / "b.txt").write_text("words")
    (tmp_path / "c.txt").write_text("words")
    os.link(tmp_path / "b.txt", tmp_path / "a.txt")
    (tmp_path / "d.txt").symlink_to("b.txt")
    assert LocalSource(tmp_path, "*.txt").shards == ["a.txt", "c.txt"]


def test_parquet_values_that_need_what_is_not_there_are_named_by_row_and_column(tmp_path):
    stamps = pyarrow.array([None, 2], pyarrow.timestamp("us", "Nowhere/Land"))
    parquet.write_table(pyarrow.table({"text": ["one", "two"], "source": stamps}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet, row 2, holds in 'source' what cannot be read"):
        texts(tmp_path, "*")


def test_parquet_dictionaries_that_are_not_utf8_are_called_so(tmp_path):
    wrong = pyarrow.array([b"caf\xe9"], pyarrow.binary()).view(pyarrow.string())
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, 0]), wrong)
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet holds text that is not UTF-8 \(after row 0\)"):
        texts(tmp_path, "*")


def test_of_two_parquet_columns_of_one_name_neither_is_taken(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array(["one"]), pyarrow.array(["two"])], names=["text", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet has several columns called 'text'"):
        texts(tmp_path, "*")


def test_parquet_pages_are_held_against_their_checksums(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": ["a word of the first row"]})
    parquet.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    path.write_bytes(path.read_bytes().replace(b"a word of", b"a ward of"))
    with pytest.raises(DataError, match=r"a\.parquet is damaged"):
        texts(tmp_path, "*")


@pytest.mark.parametrize("end", [b"PARE", b"PAR1"])
def test_encrypted_parquet_is_called_so(tmp_path, end):
    encryption = pytest.importorskip("pyarrow.parquet.encryption")

    class Keys(encryption.KmsClient):
        def __init__(self, _):
            super().__init__()

        def wrap_key(self, key, _):
            return key.hex()

        def unwrap_key(self, key, _):
            return bytes.fromhex(key)

    settings = encryption.EncryptionConfiguration(
        footer_key="f", column_keys={"c": ["text"]}, plaintext_footer=end == b"PAR1"
    )
    factory = encryption.CryptoFactory(Keys)
    properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), settings)
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["one"]}), path, encryption_properties=properties)
    assert path.read_bytes()[-4:] == end
    with pytest.raises(DataError, match=r"a\.parquet is encrypted"):
        texts(tmp_path, "*")
