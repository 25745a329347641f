"""A damaged file either loads as exactly what its bytes say or is refused in one line; never anything else."""

import json
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors

from mobilemoe.checkpoint import Checkpoint, weights, write_random
from mobilemoe.errors import CheckpointError, MobileMoEError
from mobilemoe.presets import family_member

CONFIG = family_member(64, expansion=2, granularity=4, layers=1, vocab_size=96)
NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1"}
MUTATIONS = 150  # a format


def small_parser(data: bytes) -> dict[str, np.ndarray]:
    """What a file says, for files known to be sound: the format in five lines."""
    start = 8 + int.from_bytes(data[:8], "little")
    table = json.loads(data[8:start])
    table.pop("__metadata__", None)
    places = {name: slice(*(start + at for at in entry["data_offsets"])) for name, entry in table.items()}
    return {n: np.frombuffer(data[places[n]], NUMPY[e["dtype"]]).reshape(e["shape"]) for n, e in table.items()}


def slow_int4(nibbles: np.ndarray, scale: np.ndarray) -> np.ndarray:
    q = np.stack([nibbles & 15, nibbles >> 4], -1).reshape(*nibbles.shape[:-1], -1).astype(np.float32)
    q[q > 7] -= 16
    with np.errstate(invalid="ignore"):
        return q * np.repeat(scale.astype(np.float32), 32, axis=-1)


def expected_weights(tensors: dict[str, np.ndarray], int4: bool) -> dict[str, np.ndarray]:
    out = {}
    for name, weight in weights(CONFIG).items():
        if int4 and weight.is_quantizable:
            nibbles, scale = weight.int4_names
            w = slow_int4(tensors[nibbles], tensors[scale])
            out[name] = w.swapaxes(1, 2) if weight.storage == "experts" else w
        elif tensors[name].dtype == np.uint16:
            out[name] = (tensors[name].astype(np.uint32) << 16).view(np.float32)
        else:
            out[name] = tensors[name].astype(np.float32)
    return out


def flip(data: bytes, rng: random.Random, end: int) -> bytes:
    bad = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        bit = rng.randrange(8 * end)
        bad[bit // 8] ^= 1 << bit % 8
    return bytes(bad)


def lie(data: bytes, rng: random.Random) -> bytes:
    """A well-formed header with one false claim."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    names = [name for name in header if name != "__metadata__"]
    name, other = rng.sample(names, 2)
    entry = header[name]
    number = rng.choice([-1, 0, 1, 7, 2**31, 2**32, 2**63, 2**64 - 1, 10**30, 1.5, True, None, "4", []])
    kind = rng.randrange(9)
    if kind == 0:
        entry["shape"][rng.randrange(len(entry["shape"]))] = number
    elif kind == 1:
        entry["data_offsets"][rng.randrange(2)] = number
    elif kind == 2:
        entry["dtype"] = rng.choice(["F32", "BF16", "F16", "U8", "I8", "F8_E4M3", "F4", "", "f32", None, 7])
    elif kind == 3:
        entry["data_offsets"] = list(header[other]["data_offsets"])
    elif kind == 4:
        entry["shape"], header[other]["shape"] = header[other]["shape"], entry["shape"]
    elif kind == 5:
        entry["data_offsets"], header[other]["data_offsets"] = header[other]["data_offsets"], entry["data_offsets"]
    elif kind == 6:
        del header[name]
    elif kind == 7:
        header[rng.choice(["x", name + "\u0000", "../" + name, "é" * 300])] = header.pop(name)
    else:
        header["__metadata__"] = rng.choice([{}, {"a": 1}, [], "x", {"sha256": "x"}])
    text = json.dumps(header).encode()
    if rng.random() < 0.2:  # a name given twice
        text = text[:-1] + b"," + json.dumps(other).encode() + b":" + json.dumps(header.get(other, {})).encode() + b"}"
    return len(text).to_bytes(8, "little") + text + data[start:]


def mutate(data: bytes, rng: random.Random) -> bytes:
    start = 8 + int.from_bytes(data[:8], "little")
    kind = rng.randrange(7)
    if kind == 0:
        return flip(data, rng, len(data))
    if kind == 1:
        return flip(data, rng, start)
    if kind == 2:
        return data[: rng.randrange(len(data))]
    if kind == 3:
        return data[: rng.randrange(start + 64)]
    if kind == 4:
        length = rng.choice([0, 1, start - 9, start - 7, len(data) - 8, len(data), 10**8, 10**8 + 1, 2**63, 2**64 - 1])
        return length.to_bytes(8, "little") + data[8:]
    if kind == 5:
        at = rng.randrange(len(data))
        return data[:at] + rng.randbytes(rng.randrange(1, 40)) + data[at:]
    return lie(data, rng)


def check(folder: Path, data: bytes, int4: bool) -> bool:
    """Whether the folder was accepted; fails if it was accepted wrongly or refused badly."""
    path = folder / "model.safetensors"
    path.write_bytes(data)
    try:
        with Checkpoint.open(folder) as checkpoint:
            want = small_parser(data)
            assert set(checkpoint.tensors) == set(want)
            for name, array in want.items():
                assert checkpoint.array(name).tobytes() == array.tobytes()
            # What we accept, the reference implementation reads alike.
            for name, theirs in safetensors.deserialize(data):
                assert bytes(theirs["data"]) == want[name].tobytes()
            for name, w in expected_weights(want, int4).items():
                np.testing.assert_array_equal(checkpoint.weight(name), w)
            assert checkpoint.verify()["model.safetensors"] in (False, None)
        return True
    except CheckpointError as fault:
        text = str(fault)
        assert str(path) in text
        assert len(text.splitlines()) == 1
        assert len(text) < 1500
        return False


@pytest.mark.parametrize("format", ["int4", "bf16"])
def test_mutated_files_load_as_their_bytes_say_or_are_refused(tmp_path, format):
    write_random(tmp_path / "m", CONFIG, seed=5, format=format)
    data = (tmp_path / "m" / "model.safetensors").read_bytes()
    rng = random.Random(f"mutations of {format}")
    accepted = 0
    for _ in range(MUTATIONS):
        bad = mutate(data, rng)
        if bad != data:
            accepted += check(tmp_path / "m", bad, int4=format == "int4")
    assert 5 < accepted < MUTATIONS // 2  # both ways are exercised


@pytest.mark.parametrize("format", ["int4", "bf16"])
def test_flips_anywhere_in_a_folder_are_found(tmp_path, format):
    folder = tmp_path / "m"
    write_random(folder, CONFIG, seed=5, format=format)
    rng = random.Random(7)
    for name, count in (("model.safetensors", 150), ("config.json", 150)):
        good = (folder / name).read_bytes()
        for _ in range(count):
            bit = rng.randrange(8 * len(good))
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << bit % 8
            (folder / name).write_bytes(bad)
            try:
                with Checkpoint.open(folder) as checkpoint:
                    assert checkpoint.verify()[name] is False
            except MobileMoEError:
                pass
        (folder / name).write_bytes(good)


@pytest.mark.parametrize("format", ["int4", "bf16"])
def test_opening_and_reading_takes_less_than_twice_the_file(tmp_path, format):
    folder = tmp_path / "m"
    write_random(folder, CONFIG, seed=5, format=format)
    data = (folder / "model.safetensors").read_bytes()
    rng = random.Random(9)
    for _ in range(40):
        bad = mutate(data, rng)
        (folder / "model.safetensors").write_bytes(bad)
        tracemalloc.start()
        try:
            with Checkpoint.open(folder) as checkpoint:
                for name in checkpoint.tensors:
                    checkpoint.array(name).tobytes()
        except CheckpointError:
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * len(data)
