"""The container keeps what it is given, agrees with the safetensors package and checks everything that it reads."""

import json
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from mobilemoe.checkpoint.container import DTYPES, SafetensorsFile, write_safetensors
from mobilemoe.errors import CheckpointError

TENSORS = {
    "router": ("F32", np.arange(6, dtype=np.float32).reshape(2, 3)),
    "norm": ("BF16", np.array([0x3F80, 0xBF80, 0x7FC0], np.uint16)),
    "b.scale": ("F16", np.array([[0.5], [-2]], np.float16)),
    "a.scale": ("F16", np.array([1, 2, 3], np.float16)),
    "nibbles": ("U8", np.arange(5, dtype=np.uint8)),
    "empty": ("I64", np.empty((0, 3), np.int64)),
    "scalar": ("F64", np.array(2.5)),
}


def write(path: Path, tensors=TENSORS) -> Path:
    write_safetensors(path, {name: (dtype, a.shape) for name, (dtype, a) in tensors.items()}, lambda n: tensors[n][1])
    return path


def raw_file(header: object, payload: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + payload


def entry(dtype: object = "U8", shape: object = (4,), offsets: object = (0, 4)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_what_is_written_is_read(tmp_path):
    with SafetensorsFile(write(tmp_path / "x.safetensors")) as file:
        assert set(file.tensors) == set(TENSORS)
        for name, (dtype, array) in TENSORS.items():
            assert file.tensors[name].dtype == dtype
            np.testing.assert_array_equal(file.array(name), array)
            assert file.array(name).shape == array.shape
            assert file.tensors[name].start % DTYPES[dtype].itemsize == 0
        assert file.metadata["format"] == "pt"
        assert file.verify() is True


def test_the_safetensors_package_reads_our_files(tmp_path):
    path = write(tmp_path / "x.safetensors")
    read = dict(safetensors.deserialize(path.read_bytes()))
    assert set(read) == set(TENSORS)
    for name, (dtype, array) in TENSORS.items():
        assert (read[name]["dtype"], tuple(read[name]["shape"])) == (dtype, array.shape)
        assert bytes(read[name]["data"]) == array.tobytes()


def test_we_read_files_of_the_safetensors_package_and_lay_ours_out_alike(tmp_path):
    arrays = {name: array for name, (dtype, array) in TENSORS.items() if dtype != "BF16"}
    path = tmp_path / "theirs.safetensors"
    safetensors.numpy.save_file(arrays, path, {"format": "pt"})
    ours = write(tmp_path / "ours.safetensors", {n: t for n, t in TENSORS.items() if t[0] != "BF16"})
    with SafetensorsFile(path) as file, SafetensorsFile(ours) as mine:
        for name, array in arrays.items():
            np.testing.assert_array_equal(file.array(name), array)
        assert file.verify() is None

        # The same order is what makes equal tensors equal files, hashes apart.
        def places(x: SafetensorsFile) -> dict[str, int]:
            first = min(info.start for info in x.tensors.values())
            return {name: info.start - first for name, info in x.tensors.items()}

        assert list(places(file).items()) == list(places(mine).items())


def test_arrays_are_read_only_views_that_outlive_the_file(tmp_path):
    file = SafetensorsFile(write(tmp_path / "x.safetensors"))
    array = file.array("router")
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1
    file.close()
    assert array[1, 2] == 5
    with pytest.raises(CheckpointError, match="closed"):
        file.array("router")


def test_reading_takes_no_memory_for_the_payload(tmp_path):
    big = {"w": ("U8", np.zeros(2**24, np.uint8))}
    path = write(tmp_path / "x.safetensors", big)
    tracemalloc.start()
    with SafetensorsFile(path) as file:
        assert not file.array("w").any()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**17


def test_a_failing_producer_leaves_nothing_behind(tmp_path):
    def produce(name: str) -> np.ndarray:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        write_safetensors(tmp_path / "x.safetensors", {"a": ("U8", (4,))}, produce)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("array", [np.zeros(3, np.uint8), np.zeros(4, np.int8), np.zeros((4, 1), np.uint8)])
def test_an_array_that_is_not_what_was_announced_is_refused(tmp_path, array):
    with pytest.raises(CheckpointError, match="'a' was produced as"):
        write_safetensors(tmp_path / "x.safetensors", {"a": ("U8", (4,))}, lambda name: array)
    assert list(tmp_path.iterdir()) == []


def test_every_flipped_bit_of_a_file_we_wrote_is_found(tmp_path):
    path = write(tmp_path / "x.safetensors", {name: TENSORS[name] for name in ("norm", "a.scale", "nibbles")})
    good = path.read_bytes()
    missed = []
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        try:
            with SafetensorsFile(path) as file:
                if file.verify() is not False:
                    missed.append(bit)
        except CheckpointError:
            pass
    assert missed == []


FOUR = b"abcd"
LYING = {
    "empty file": b"",
    "seven bytes": b"1234567",
    "header longer than the file": raw_file({}, length=3),
    "header of 100 MB claimed": raw_file({}, length=100_000_000),
    "header of 2^64 - 1 claimed": raw_file({}, length=2**64 - 1),
    "no header": raw_file(b""),
    "not UTF-8": raw_file(b'{"\xff":1}'),
    "a byte order mark": raw_file(b"\xef\xbb\xbf{}"),
    "UTF-16": raw_file("{}".encode("utf-16")),
    "not JSON": raw_file(b"{"),
    "JSON and more": raw_file(b"{}{}"),
    "a list": raw_file([]),
    "blank before the brace": raw_file(b" {}"),
    "deep nesting": raw_file(b'{"a":' + b"[" * 200_000),
    "a number too long to read": raw_file(b'{"a":' + b"9" * 10_000 + b"}"),
    "NaN for an entry": raw_file(b'{"a":NaN}'),
    "same name twice": raw_file(
        b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
        FOUR,
    ),
    "same key twice": raw_file(b'{"a":{"dtype":"U8","dtype":"I8","shape":[4],"data_offsets":[0,4]}}', FOUR),
    "unknown dtype": raw_file({"a": entry("U7")}, FOUR),
    "dtype not text": raw_file({"a": entry(["U8"])}, FOUR),
    "missing field": raw_file({"a": {"dtype": "U8", "shape": [4]}}, FOUR),
    "extra field": raw_file({"a": {**entry(), "more": 1}}, FOUR),
    "shape not a list": raw_file({"a": entry(shape=4)}, FOUR),
    "negative extents": raw_file({"a": entry(shape=[-2, -2])}, FOUR),
    "true as extent": raw_file({"a": entry(shape=[4, True])}, FOUR),
    "fraction as extent": raw_file({"a": entry(shape=[4.0])}, FOUR),
    "product that wraps to 4 in 64 bits": raw_file({"a": entry(shape=[2**62 + 1, 4])}, FOUR),
    "nothing times too much": raw_file({"a": entry(shape=[0, 2**62, 2**62], offsets=[0, 0])}),
    "too many dimensions": raw_file({"a": entry(shape=[1] * 65, offsets=[0, 1])}, b"a"),
    "offsets reversed": raw_file({"a": entry(offsets=[4, 0])}, FOUR),
    "negative offset": raw_file({"a": entry(offsets=[-4, 0])}, FOUR),
    "three offsets": raw_file({"a": entry(offsets=[0, 4, 4])}, FOUR),
    "offsets not numbers": raw_file({"a": entry(offsets=["0", "4"])}, FOUR),
    "size not the shape's": raw_file({"a": entry("F32")}, FOUR),
    "overlap": raw_file({"a": entry(), "b": entry(offsets=[2, 6])}, FOUR + b"ef"),
    "same place twice": raw_file({"a": entry(), "b": entry()}, FOUR),
    "hole": raw_file({"a": entry(), "b": entry(offsets=[5, 9])}, FOUR + b"efghi"),
    "hole at the front": raw_file({"a": entry(offsets=[1, 5])}, b"a" + FOUR),
    "cut short": raw_file({"a": entry()}, FOUR[:3]),
    "bytes appended": raw_file({"a": entry()}, FOUR + b"e"),
    "payload without tensors": raw_file({}, FOUR),
    "metadata not an object": raw_file({"__metadata__": [], "a": entry()}, FOUR),
    "metadata not text": raw_file({"__metadata__": {"a": 1}, "a": entry()}, FOUR),
    "name with a line break": raw_file({"a\nb\ud800": entry("U7")}, FOUR),
}


@pytest.mark.parametrize("case", LYING)
def test_a_lying_header_is_refused_in_one_line_that_names_the_file(tmp_path, case):
    path = tmp_path / "lie.safetensors"
    path.write_bytes(LYING[case])
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 1000
    str(caught.value).encode()


def test_an_honest_file_beside_the_liars_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_file({"a": entry(), "b": entry(shape=[0], offsets=[4, 4])}, FOUR))
    with SafetensorsFile(path) as file:
        assert file.array("a").tobytes() == FOUR
        assert file.array("b").size == 0


def test_a_hash_without_its_twin_is_a_change(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_file({"__metadata__": {"sha256": "0" * 64}, "a": entry()}, FOUR))
    assert SafetensorsFile(path).verify() is False


def test_what_is_not_a_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        SafetensorsFile(tmp_path / "none")
    with pytest.raises(CheckpointError, match="not a file"):
        SafetensorsFile(tmp_path)
