"""Promises of files: whole or absent, whatever happens in between."""

import hashlib
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mobilemoe import files
from mobilemoe.errors import CheckpointError, ConfigError, MobileMoEError
from mobilemoe.files import (
    atomic_file,
    atomic_folder,
    check_writable,
    read_json,
    read_text,
    read_toml,
    scratch_folder,
    sha256_file,
    write_atomic,
    write_json,
)


class AccidentError(Exception):
    pass


def test_a_file_appears_with_its_whole_content_and_missing_parents(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    with atomic_file(path) as handle:
        handle.write(b"half")
        handle.flush()
        assert not path.exists()
        handle.write(b" and half")
    assert path.read_bytes() == b"half and half"
    assert os.listdir(path.parent) == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("accident", [AccidentError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [None, b"old"])
def test_an_exception_leaves_nothing_and_the_old_file_as_it_was(before, accident, tmp_path):
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(accident), atomic_file(path) as handle:  # noqa: PT012
        handle.write(b"x" * 100_000)
        raise accident
    assert os.listdir(tmp_path) == ([] if before is None else ["file"])
    assert before is None or path.read_bytes() == before


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_fault_of_the_disk_leaves_nothing_either(step, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(files.os, step, fail)
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    order = []
    for name in ("fsync", "replace", "rename"):
        real = getattr(os, name)
        monkeypatch.setattr(files.os, name, lambda *args, name=name, real=real: (order.append(name), real(*args))[1])
    write_atomic(tmp_path / "file", b"x")
    assert order == ["fsync", "replace", "fsync"]
    order.clear()
    with atomic_folder(tmp_path / "folder") as part:
        (part / "file").write_bytes(b"x")
    assert order == ["fsync", "fsync", "rename", "fsync"]


def test_a_reader_never_sees_a_half_file(tmp_path):
    path, size = tmp_path / "file", 200_000
    contents = [bytes([n]) * size for n in range(10)]
    write_atomic(path, contents[0])
    done, seen = threading.Event(), 0

    def write():
        n = 0
        while n < 60 or (seen < 20 and n < 10_000):
            write_atomic(path, contents[n % 10])
            n += 1
        done.set()

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    while not done.is_set():
        assert path.read_bytes() in contents
        seen += 1
    writer.join()
    assert seen >= 20
    assert os.listdir(tmp_path) == ["file"]


def test_a_killed_writer_leaves_the_old_file_or_the_new(tmp_path):
    script = (
        "import sys\nfrom mobilemoe.files import write_atomic\nn = 0\n"
        "while True:\n    n = (n + 1) % 10\n    write_atomic(sys.argv[1], bytes([48 + n]) * 300000)\n"
    )
    path = tmp_path / "file"
    for delay in (0.0, 0.003, 0.011):
        process = subprocess.Popen([sys.executable, "-c", script, str(path)])
        try:
            while not path.exists() and process.poll() is None:
                time.sleep(0.002)
            time.sleep(delay)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        data = path.read_bytes()
        assert len(data) == 300_000
        assert len(set(data)) == 1
        path.unlink()


def test_a_folder_becomes_visible_in_one_step_with_everything_in_it(tmp_path):
    target = tmp_path / "runs" / "model"
    with atomic_folder(target) as part:
        assert part.parent == target.parent
        (part / "deep").mkdir()
        (part / "deep" / "file").write_bytes(b"x")
        assert not target.exists()
    assert (target / "deep" / "file").read_bytes() == b"x"
    assert os.listdir(target.parent) == ["model"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o755


@pytest.mark.parametrize("accident", [AccidentError, KeyboardInterrupt])
def test_an_exception_leaves_no_folder(accident, tmp_path):
    with pytest.raises(accident), atomic_folder(tmp_path / "model") as part:  # noqa: PT012
        (part / "deep").mkdir()
        (part / "deep" / "file").write_bytes(b"x")
        raise accident
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file"])
def test_a_folder_that_is_there_is_never_overwritten(kind, tmp_path):
    target = tmp_path / "model"
    if kind == "file":
        target.write_bytes(b"mine")
    else:
        target.mkdir()
        if kind == "folder":
            (target / "file").write_bytes(b"mine")
    with pytest.raises(CheckpointError, match="exists already: choose another name or remove it"):
        atomic_folder(target, CheckpointError).__enter__()
    assert os.listdir(tmp_path) == ["model"]


def test_of_two_that_write_the_same_folder_the_slower_is_refused_and_leaves_nothing(tmp_path):
    target = tmp_path / "model"
    slower = atomic_folder(target, CheckpointError)
    (slower.__enter__() / "weights").write_bytes(b"slow")
    with atomic_folder(target, CheckpointError) as part:
        (part / "weights").write_bytes(b"fast")
    with pytest.raises(CheckpointError, match="model exists already"):
        slower.__exit__(None, None, None)
    assert (target / "weights").read_bytes() == b"fast"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_appears_meanwhile_is_not_overwritten(tmp_path):
    target = tmp_path / "model"
    with pytest.raises((OSError, MobileMoEError)), atomic_folder(target) as part:  # noqa: PT012
        (part / "file").write_bytes(b"mine")
        target.mkdir()
        (target / "file").write_bytes(b"another's")
    assert (target / "file").read_bytes() == b"another's"
    assert os.listdir(tmp_path) == ["model"]


def test_text_and_json_are_utf8_with_one_line_end(tmp_path):
    write_atomic(tmp_path / "text", "naïve ✓")
    assert (tmp_path / "text").read_bytes() == "naïve ✓".encode()
    value = {"b": [1, 2.5, None], "a": "naïve ✓"}
    write_json(tmp_path / "value.json", value)
    text = (tmp_path / "value.json").read_bytes().decode()
    assert "naïve ✓" in text
    assert text.endswith("}\n")
    assert list(read_json(tmp_path / "value.json").items()) == list(value.items())


def test_json_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(tmp_path / "value.json", {"a": object()})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("size", [0, 1, 1_000_003])
def test_hashes_are_sha256(size, tmp_path):
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "is not valid JSON"),
        (b'{"a": 1', "is not valid JSON"),
        (b"\xff\xfe\xff", "is not UTF-8 text at byte 0"),
        (b'{"a": "\\ud800"}', "holds half a surrogate pair"),
        (b"[1]", "holds a JSON list, not an object"),
        (b"null", "holds a JSON NoneType, not an object"),
        (b"[" * 200_000, "is not valid JSON"),
        (b'{"a": ' * 200_000, "is not valid JSON"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "is not valid JSON"),
        ("folder", "cannot be read"),
    ],
)
def test_json_that_cannot_be_read_is_one_sentence_with_its_path(content, words, tmp_path):
    path = tmp_path / "value.json"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_json(path, ConfigError)
    assert str(caught.value).startswith(str(path))
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_json_file_too_large_to_be_honest_is_not_read(tmp_path, monkeypatch):
    write_json(tmp_path / "value.json", {"a": "x" * 100})
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 100)
    with pytest.raises(ConfigError, match="bytes, more than the 100"):
        read_json(tmp_path / "value.json", ConfigError)


def test_a_path_through_a_file_is_one_sentence_too(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot be read: Not a directory"):
        read_json(tmp_path / "file" / "value.json", ConfigError)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "value.json").write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa4 \\ud83d\\ude42"}')
    assert read_json(tmp_path / "value.json") == {"a": "ä \U0001f642"}
    assert read_text(tmp_path / "value.json", ConfigError).startswith("{")


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_a_pipe_or_a_device_is_refused_without_waiting(kind, tmp_path):
    path = tmp_path / "value.json"
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="is no regular file"):
        read_json(path, ConfigError)


@pytest.mark.parametrize(("umask", "file", "folder"), [(0o077, 0o600, 0o700), (0o002, 0o664, 0o775)])
def test_the_umask_is_obeyed(umask, file, folder, tmp_path):
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "file", b"x")
        with atomic_folder(tmp_path / "folder") as part:
            (part / "file").write_bytes(b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == file
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == folder


def test_what_killed_processes_left_goes_and_what_living_ones_write_stays(tmp_path):
    (tmp_path / ".file.0123.part").write_bytes(b"left")
    (tmp_path / ".other.0123.part").write_bytes(b"of another name")
    with atomic_file(tmp_path / "file") as living:
        living.write(b"first")
        write_atomic(tmp_path / "file", b"second")
        assert (tmp_path / "file").read_bytes() == b"second"
    assert (tmp_path / "file").read_bytes() == b"first"
    assert sorted(os.listdir(tmp_path)) == [".other.0123.part", "file"]


def test_a_scratch_folder_goes_also_when_its_process_was_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
    left = tmp_path / "mobilemoe-scratch-left"
    left.mkdir()
    (left / "file").write_bytes(b"left")
    with scratch_folder() as first, scratch_folder() as second:
        assert first != second
        assert first.is_dir()
        assert not left.exists()
    assert os.listdir(tmp_path) == []


def test_toml_is_read_with_a_byte_order_mark_and_refused_with_its_place(tmp_path):
    path = tmp_path / "file.toml"
    path.write_bytes(b"\xef\xbb\xbfa = 1\r\n")
    assert read_toml(path, ConfigError) == {"a": 1}
    for data in (b"a = 1\nb = \n", b"a = " + b"[" * 100_000, b"a = " + b"9" * 5000, b"\xff\xfea"):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=r"file\.toml"):
            read_toml(path, ConfigError)


def test_a_disk_that_is_full_names_the_file_that_was_wanted(tmp_path):
    script = (
        "import resource, sys\n"
        "import numpy as np\n"
        "from mobilemoe.files import atomic_file, atomic_folder, write_atomic\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "def folder():\n"
        "    with atomic_folder('folder') as part: (part / 'inside').write_bytes(bytes(2000))\n"
        "def nested():\n"
        "    with atomic_folder('nested') as part: write_atomic(part / 'inside', bytes(2000))\n"
        "def handle():\n"
        "    with atomic_file('handle') as file: file.write(bytes(100_000))\n"
        "def array():\n"
        "    with atomic_file('array') as file: np.zeros(100_000).tofile(file)\n"
        "for work in (folder, nested, handle, lambda: write_atomic('file', bytes(2000)), array):\n"
        "    try: work()\n"
        "    except OSError as fault: print(fault.filename2 or fault.filename, fault.strerror, sep=': ')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    lines = done.stdout.splitlines()
    assert lines[:4] == [f"{name}: File too large" for name in ("folder", "nested", "handle", "file")]
    assert lines[4:] == ["array: only a part of it could be written: the disk may be full"]
    assert os.listdir(tmp_path) == []


def test_a_place_that_takes_no_file_is_told_before_the_work_and_one_that_does_stays_empty(tmp_path):
    check_writable(tmp_path / "new" / "file")
    assert os.listdir(tmp_path / "new") == []
    (tmp_path / "file").write_text("old")
    check_writable(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "old"
    for path in (tmp_path, tmp_path / "file" / "below", Path("/dev/null")):
        with pytest.raises(OSError, match=r".") as caught:
            check_writable(path)
        assert caught.value.filename is not None


@pytest.mark.parametrize("kind", ["pipe", "device", "link to a device"])
def test_what_is_no_regular_file_is_not_replaced(kind, tmp_path):
    path = tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/null")
    else:
        path.symlink_to("/dev/null")
    before = os.lstat(path)
    with pytest.raises(OSError, match="no regular file"):
        write_atomic(path, b"x")
    assert os.lstat(path).st_ino == before.st_ino
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
