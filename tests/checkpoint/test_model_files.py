"""Everything that reads a model's folder refuses a file that is not what its name says, soon and in one sentence."""

import json
import os
import shutil
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from mobilemoe.chat import ChatTemplate
from mobilemoe.checkpoint import Checkpoint, write_random
from mobilemoe.config import ModelConfig
from mobilemoe.errors import CheckpointError, MobileMoEError
from mobilemoe.hub import find_model
from mobilemoe.presets import family_member
from mobilemoe.tokenizer import Tokenizer

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb\nsize 12345\n"
READERS: dict[str, Callable[[Path], object]] = {
    "config.json": ModelConfig.load,
    "model.safetensors": Checkpoint.open,
    "model.safetensors.index.json": Checkpoint.open,
    "tokenizer.json": Tokenizer.load,
    "tokenizer.model": Tokenizer.load,
    "tokenizer_config.json": ChatTemplate.load,
    "special_tokens_map.json": ChatTemplate.load,
    "chat_template.jinja": ChatTemplate.load,
    "chat_template.json": ChatTemplate.load,
    "additional_chat_templates/rag.jinja": ChatTemplate.load,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_random(tmp_path / "model", family_member(64, vocab_size=96, layers=1), seed=1, format="bf16")
    shutil.copy(find_model("nano") / "tokenizer.json", tmp_path / "model")
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps({"chat_template": "x"}))
    (tmp_path / "model" / "chat_template.jinja").write_text("x")
    (tmp_path / "model" / "additional_chat_templates").mkdir()
    return tmp_path / "model"


def fifo(path: Path) -> None:
    os.mkfifo(path)


def pointer(path: Path) -> None:
    path.write_bytes(POINTER)


def larger(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**30)  # a sparse gigabyte of zeros


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (fifo, "no regular file|is not a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "no regular file|is not a file"),
    "folder": (lambda path: path.mkdir(), "cannot be read|cannot be used|is not a file"),
    "loop": (lambda path: path.symlink_to(path.name), "cannot be read|cannot be used|does not exist"),
    "link to nothing": (lambda path: path.symlink_to("gone"), "cannot be used|does not exist"),
    "Git LFS": (pointer, "is a Git LFS pointer"),
    "a gigabyte": (larger, "more than the|has a damaged header"),
    "empty": (lambda path: path.write_bytes(b""), ""),
    "text": (lambda path: path.write_bytes(b"{% for \xff"), ""),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_such_file_is_one_sentence_soon(name: str, kind: str, folder: Path) -> None:
    path = folder / name
    if name in ("tokenizer.model", "model.safetensors.index.json"):  # read only where the other form is not there
        (folder / {"tokenizer.model": "tokenizer.json"}.get(name, "model.safetensors")).unlink()
    if name == "chat_template.json":
        (folder / "chat_template.jinja").unlink()
        (folder / "tokenizer_config.json").unlink()
    make, complaint = KINDS[kind]
    path.unlink(missing_ok=True)
    make(path)
    if kind == "empty" and name.endswith(".jinja"):
        ChatTemplate.load(folder)  # says nothing, as in transformers
        return
    said: list[BaseException] = []

    def read() -> None:
        try:
            READERS[name](folder)
        except BaseException as fault:
            said.append(fault)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(60)
    assert not reader.is_alive(), "it waits"
    [fault] = said
    assert isinstance(fault, MobileMoEError), repr(fault)
    sentence = str(fault)
    assert len(sentence.splitlines()) == 1
    assert path.name in sentence or (path.is_symlink() and "does not exist" in sentence)
    if kind not in ("empty", "text"):
        assert any(part in sentence for part in complaint.split("|")), sentence


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", '{"a": [' + "[]," * 400_000 + "0]}"),
        ("model.safetensors.index.json", '{"weight_map": {' + '"a": [],' * 3_000_000 + '"b": 0}}'),
        ("tokenizer_config.json", '{"chat_template": [' + "[]," * 5_000_000 + "0]}"),
    ],
)
def test_a_file_cannot_take_much_memory(name: str, text: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_text(text)
    tracemalloc.start()
    with pytest.raises(MobileMoEError, match=name.replace(".", r"\.")):
        READERS[name](folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * len(text)


def test_a_large_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    header = b'{"__metadata__":{"x":"' + b"y" * 2**25 + b'"}}'
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    shutil.copy(find_model("nano") / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match="claims a header of"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "C64", "F6_E2M3"])
def test_a_dtype_that_is_not_supported_is_no_damage(dtype: str, folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"BF16"', f'"{dtype}"'.encode().ljust(6), 1))
    if len(dtype) > 4:  # a longer name: the header grows
        size = int.from_bytes(data[:8], "little")
        header = data[8 : 8 + size].replace(b'"BF16"', f'"{dtype}"'.encode(), 1)
        path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    assert f"has the dtype '{dtype}', which is not supported" in str(caught.value)
    assert "damaged" not in str(caught.value)
