"""No verb ends with a traceback on bad input: each call with each file that it reads damaged in every way we know.

What must hold of each of some thousand calls: exit status 0, or 1 or 2 with one sentence that names the file; within
five seconds of the processor; nothing half written. Damage that changes nothing must change no result.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import damage_server
from damage import Damage, Expect, every
from damage_inputs import SUITE, TARGETS, Target, build
from mobilemoe.data import shards
from mobilemoe.data.encoding import open_tokenizer
from mobilemoe.errors import MobileMoEError
from mobilemoe.files import open_regular
from mobilemoe.sweep.grid import load_grid
from mobilemoe.sweep.heldout import read_held_out

pytest.importorskip("torch")
pytest.importorskip("lm_eval")

SECONDS = 5.0
EACH = 5  # of the damage to what a file says, so many times fewer than `step` says are tried by `make test`
FILES, BYTES = 10, 42  # so many of `every` damage the file itself, and the file and its bytes
STREAMS = {"stdin", "stdout", "stderr", "cache"}
# Numbers that no two calls share: speeds, times, memory.
CHANGING = re.compile(r"\d[\d.,]* (?:\wi?B|seconds|m?s|tokens/s|\wFLOP/s|hours)\b|\"\w*seconds?\": [\d.e+-]+")


class Server:
    """Runs verbs in forks of one process."""

    def __init__(self) -> None:
        changes = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [sys.executable, damage_server.__file__],
            **dict.fromkeys(("stdin", "stdout"), subprocess.PIPE),
            text=True,
            env={**os.environ, **changes},
        )

    def call(
        self,
        folder: Path,
        *arguments: str,
        stdin: str = "",
        unreadable: bool = False,
        most_bytes: int | None = None,
        cache: str = "cache",
    ) -> dict[str, Any]:
        order = {"arguments": arguments, "folder": str(folder), "stdin": stdin, "cache": cache}
        order |= {"unreadable": unreadable, "most_bytes": most_bytes}
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        ended = json.loads(self.process.stdout.readline())
        for name in ("stdout", "stderr"):
            ended[name] = (folder / name).read_text(errors="replace")
        return ended


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    started = Server()
    yield started
    started.process.stdin.close()
    started.process.wait(60)


@pytest.fixture(scope="session")
def inputs(server, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")

    def call(*arguments: str, **options: str) -> None:
        ended = server.call(folder, *arguments, **options)
        assert ended["status"] == 0, ended

    build(folder, call)
    for name in STREAMS:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


def lay(inputs: Path, folder: Path, target: Target) -> Path:
    """The inputs as links, but for what the target's file lies in, which is copied; gives that file."""
    first = Path(target.file).parts[0]
    folder.mkdir()
    for path in inputs.iterdir():
        if path.name != first:
            (folder / path.name).symlink_to(path)
        elif path.is_dir():
            shutil.copytree(path, folder / first)
        else:
            shutil.copy(path, folder)
    (found,) = folder.glob(target.file)
    return found


def full_disk(place: Path) -> tuple[Path, int | None]:
    return Path("out"), 600  # which leaves room for the sentence


def nearly_full_disk(place: Path) -> tuple[Path, int | None]:
    return Path("out"), 3000


def a_file_as_folder(place: Path) -> tuple[Path, int | None]:
    (place / "file").write_bytes(b"")
    return Path("file/out"), None


def no_right_to_write(place: Path) -> tuple[Path, int | None]:
    (place / "closed").mkdir(0o555)
    return Path("closed/out"), None


def a_folder_of_that_name(place: Path) -> tuple[Path, int | None]:
    (place / "there").mkdir()
    (place / "there" / "mine").write_bytes(b"mine")
    return Path("there"), None


def a_link_to_nowhere(place: Path) -> tuple[Path, int | None]:
    (place / "link").symlink_to("/nowhere/at/all")
    return Path("link"), None


def a_name_too_long(place: Path) -> tuple[Path, int | None]:
    return Path("x" * 300), None


HINDRANCES = (
    *(full_disk, nearly_full_disk, a_file_as_folder, no_right_to_write, a_folder_of_that_name),
    *(a_link_to_nowhere, a_name_too_long),
)


def expected(damage: Damage, target: Target) -> Expect:
    """What the damage has to lead to in this call."""
    if target.harmless:
        return "same"
    verb = target.arguments[0]
    if damage.expect == "same" and (target.lenient or verb == "bench" or "--verify" in target.arguments):
        return "either"  # speeds are never the same, and --verify asks whether a byte has changed
    if damage.expect == "refused" and target.lenient:
        return "either"
    if " is renamed" in damage.name and verb in ("data", "eval"):
        return "either"  # of a recipe they need some tables
    return damage.expect


def faults_of(ended: dict[str, Any], damage: Damage, target: Target, folder: Path, whole: dict[str, Any]) -> str | None:
    """What is wrong with how a call has ended, in words; None if nothing is."""
    said, status = ended["stderr"].strip(), ended["status"]
    if status is None:
        return f"hung for {damage_server.TIMEOUT:.0f} s"
    if "Traceback" in said:
        return "traceback: " + said.splitlines()[-1][:200]
    if status not in (0, 1, 2):
        return f"ended with {status}: {said[-200:]}"
    trained = status == 0 and target.arguments[0] == "sweep"  # what the table no longer has
    if ended["seconds"] > SECONDS and not trained:
        return f"took {ended['seconds']:.1f} s"
    if "Warning" in said:
        return f"a warning of Python's: {said[-300:]}"
    if left := [path for path in folder.rglob("*.part") if "cache" not in path.parts]:
        return f"left {left[0].name}"
    expect = expected(damage, target)
    if status == 0:
        if expect == "refused":
            return f"took it: {ended['stdout'][-100:]!r}"
        if expect == "same" and CHANGING.sub("", ended["stdout"]) != CHANGING.sub("", whole["stdout"]):
            return f"says something else: {ended['stdout'][-300:]!r}"
        return None
    if expect == "same":
        return f"refused it: {said[-300:]}"
    if target.writes and os.path.lexists(folder / target.writes):
        return f"left {target.writes}"
    sentence = said.splitlines()[-1] if said else ""
    if status == 2 and "─ Error ─" in said:  # Typer's own, for a file that may not be read
        sentence = f"mobilemoe: {said.partition('─ Error ─')[2]}"
    if not sentence.startswith("mobilemoe: "):
        return f"no sentence: {said[-300:]!r}"
    names = [Path(target.file).name, Path(target.file).parts[0], *target.names]
    if target.kind == "toml":
        names += [damage.name.split()[0].rpartition(".")[2], "there is no folder"]  # the entry, or what it says
    if target.kind == "safetensors":
        names.append("model.layers.")  # a tensor
    if not any(name in sentence for name in names):
        return f"names no file: {sentence[:300]}"
    return None


def chosen(target: Target, data: bytes, step: int) -> list[Damage]:
    """All damage to the file, and every `step`-th of that to what it holds; to bytes too where others have it all."""
    found = every(data, target.kind)
    whole = FILES if any(each.file == target.file for each in TARGETS[: TARGETS.index(target)]) else BYTES
    return [each for n, each in enumerate(found) if n < whole or (n + len(target.name)) % step == 0]


def try_all(server: Server, inputs: Path, folder: Path, target: Target, step: int) -> tuple[int, list[str]]:
    """Number of the calls, and what was wrong."""
    place = folder / "whole"
    path = lay(inputs, place, target)
    data = path.read_bytes()
    whole = server.call(place, *target.arguments, stdin=target.stdin, cache=target.cache)
    assert whole["status"] == 0, whole
    damages = chosen(target, data, step)
    wrong = []
    for number, damage in enumerate(damages):
        place = folder / str(number)
        damage.apply(lay(inputs, place, target))
        ended = server.call(
            place, *target.arguments, stdin=target.stdin, unreadable=damage.unreadable, cache=target.cache
        )
        if fault := faults_of(ended, damage, target, place, whole):
            wrong.append(f"{damage.name}: {fault}")
        shutil.rmtree(place)
    return len(damages), wrong


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_damage_is_refused_in_a_sentence_or_does_no_harm(server, inputs, tmp_path, target, record_property):
    tried, wrong = try_all(server, inputs, tmp_path, target, EACH * target.step)
    record_property("damaged", tried)
    assert not wrong, f"{len(wrong)} of {tried} cases:\n" + "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_all_damage_is_refused_in_a_sentence_or_does_no_harm(server, inputs, tmp_path, target, record_property):
    tried, wrong = try_all(server, inputs, tmp_path, target, 1)
    record_property("damaged", tried)
    assert not wrong, f"{len(wrong)} of {tried} cases:\n" + "\n".join(wrong)


def test_damaged_held_out_text_of_a_sweep_is_refused_in_a_sentence(inputs, tmp_path, monkeypatch, record_property):
    """The workers of a sweep read it, which are processes of their own: so what they call is called here."""
    monkeypatch.chdir(inputs)
    grid = load_grid("grid.toml")
    tokenizer, template = open_tokenizer(Path("tok"))
    path = tmp_path / "heldout.jsonl"
    data = Path("heldout.jsonl").read_bytes()
    heldout = grid.heldout.model_copy(update={"path": str(path)})
    damages = [damage for n, damage in enumerate(every(data, "jsonl")) if n < BYTES or n % EACH == 0]
    wrong = []
    for damage in damages:
        path.write_bytes(data)
        damage.apply(path)
        if damage.unreadable:
            monkeypatch.setattr(shards, "open_regular", not_allowed)
        try:
            read_held_out(heldout, grid.data, tokenizer, template, grid.train.sequence_length)
            if damage.expect == "refused":
                wrong.append(f"{damage.name}: took it")
        except MobileMoEError as fault:
            if path.name not in str(fault) or damage.expect == "same":
                wrong.append(f"{damage.name}: {fault}")
        monkeypatch.setattr(shards, "open_regular", open_regular)
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    record_property("damaged", len(damages))
    assert not wrong, "\n".join(wrong)


def not_allowed(path: Path, _: object) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


MAKING = [
    ("convert", "tiny", "out", "--format", "bf16"),
    ("convert", "tiny", "out", "--format", "engine"),
    ("quantize", "bf16", "out"),
    ("prune", "tiny", "--text", "text/own.jsonl", "--experts", "2", "--out", "out"),
    ("train", "recipe.toml", "--out", "out"),
    ("data", "prepare", "recipe.toml", "out"),
    ("data", "tokenizer", "recipe.toml", "out", "--vocab-size", "310"),
    ("data", "sample", "recipe.toml", "out", "--split", "train"),
    ("data", "chats", "chats/own.jsonl", "--out", "out"),
    ("fit", "runs.csv", "--law", "chinchilla", "--bootstraps", "0", "--out", "out"),
    ("fit", "runs.csv", "--law", "chinchilla", "--bootstraps", "0", "--report", "out"),
    ("plan", "--memory", "1GB", "--train-flops", "8e20", "--report", "out"),
    ("plan", "--memory", "1GB", "--train-flops", "8e20", "--png", "out"),
    ("plan", "--memory", "1GB", "--train-flops", "8e20", "--write", "out"),
    ("report", "results/tiny-hellaswag.json", "--out", "out"),
    ("report", "results/tiny-hellaswag.json", "--card", "out"),
    (*SUITE[:-1], "out"),
]


@pytest.mark.parametrize("arguments", MAKING, ids=" ".join)
def test_where_nothing_can_be_written_nothing_is_left(server, inputs, tmp_path, arguments, record_property):
    """A full disk, a file where a folder must be, a folder that may not be written, what exists already."""
    wrong = []
    for number, hindrance in enumerate(HINDRANCES):
        place = tmp_path / str(number)
        place.mkdir()
        for path in inputs.iterdir():
            (place / path.name).symlink_to(path)
        out, most_bytes = hindrance(place)
        call = [str(out) if part == "out" else part for part in arguments]
        before = set(place.rglob("*"))
        ended = server.call(place, *call, unreadable=True, most_bytes=most_bytes)
        said = ended["stderr"].strip().splitlines() or [""]
        left = [p for p in place.rglob("*") if p not in before and p.relative_to(place).parts[0] not in STREAMS]
        if ended["status"] not in (0, 1, 2) or "Traceback" in ended["stderr"]:
            wrong.append(f"{hindrance.__name__}: {ended['status']}, {said[-1]}")
        elif ended["status"] and not (said[-1].startswith("mobilemoe: ") or "Error" in ended["stderr"]):
            wrong.append(f"{hindrance.__name__}: no sentence: {said[-1]}")
        elif "standard output: File too large" in said[-1]:
            continue  # what was asked for is written already
        elif ended["status"] and "a file:" in said[-1]:
            wrong.append(f"{hindrance.__name__}: names no file: {said[-1]}")
        elif ended["status"] and left and arguments[0] not in ("train", "eval"):  # which go on from what they have
            wrong.append(f"{hindrance.__name__}: left {left[0].relative_to(place)}")
        elif any(path.name.endswith(".part") for path in left):
            wrong.append(f"{hindrance.__name__}: left a part")
        place.chmod(0o755)
    record_property("damaged", len(HINDRANCES))
    assert not wrong, "\n".join(wrong)
