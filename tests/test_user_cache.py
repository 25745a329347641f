"""The cache: no folder or file that others could have written is used, and what was used longest ago is removed."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from mobilemoe import user_cache
from mobilemoe.engine import Engine
from mobilemoe.errors import UsageError
from mobilemoe.evaluate.models.request_cache import RequestCache
from mobilemoe.profile.random_model import random_model
from tiny_model import write_model

NOBODY = 65_533  # nobody's number, and not the one that stands for unmapped users
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A cache's home; nothing is there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def run_verb(*arguments, **environment):
    command = [sys.executable, "-c", "from mobilemoe.cli.main import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=120)


def test_the_cache_is_for_its_owner_alone(home):
    folder = user_cache.usable_cache("engine")
    assert folder == home / "mobilemoe/engine" == user_cache.cache_folder()
    assert {path.stat().st_mode & 0o777 for path in (folder, folder.parent)} == {0o700}


@pytest.mark.parametrize("mode", [0o777, 0o733, 0o722])
@pytest.mark.parametrize("place", ["home", "home/mobilemoe", "home/mobilemoe/engine", "."])
def test_folders_that_others_may_write_are_not_used(home, tmp_path, mode, place):
    user_cache.usable_cache("engine")
    folder = tmp_path / place
    before = folder.stat().st_mode & 0o7777
    folder.chmod(mode)
    try:
        with pytest.raises(OSError, match="can be written by other users"):
            user_cache.usable_cache("engine")
    finally:
        folder.chmod(before)


def test_a_folder_like_tmp_will_do_above_the_cache_and_not_as_the_cache(home):
    home.mkdir()
    home.chmod(0o1777)
    folder = user_cache.usable_cache("engine")
    folder.chmod(0o1777)
    with pytest.raises(OSError, match="can be written by other users"):
        user_cache.usable_cache("engine")


def test_a_link_to_a_place_that_others_may_write_is_not_used(home, tmp_path):
    target = tmp_path / "open/deep"
    target.mkdir(parents=True)
    home.symlink_to(target)
    assert user_cache.usable_cache("engine").is_dir()
    target.parent.chmod(0o777)
    with pytest.raises(OSError, match="can be written by other users"):
        user_cache.usable_cache("engine")


@as_root
@pytest.mark.parametrize("place", ["home", "home/mobilemoe", "home/mobilemoe/engine"])
def test_folders_of_others_are_not_used(home, tmp_path, place):
    user_cache.usable_cache("engine")
    os.chown(tmp_path / place, NOBODY, NOBODY)
    with pytest.raises(OSError, match="belongs to another user"):
        user_cache.usable_cache("engine")


@as_root
@pytest.mark.parametrize("sandboxed", [False, True])
def test_nobody_owns_folders_above_the_cache_in_sandboxes_alone(home, monkeypatch, sandboxed):
    user_cache.usable_cache("engine")
    monkeypatch.setattr(user_cache, "_is_in_user_namespace", lambda: sandboxed)
    os.chown(home, 65534, 65534)
    if sandboxed:
        assert user_cache.usable_cache("engine").is_dir()
    os.chown(home / "mobilemoe" if sandboxed else home, 65534, 65534)
    with pytest.raises(OSError, match="belongs to another user"):
        user_cache.usable_cache("engine")


@as_root
def test_nothing_is_made_in_the_home_of_another(home):
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    with pytest.raises(OSError, match="belongs to another user"):
        user_cache.usable_cache("engine")
    assert not list(home.iterdir())


@pytest.mark.parametrize("trick", ["mode", "link", pytest.param("owner", marks=as_root)])
def test_an_engine_file_that_another_may_have_put_there_is_not_used(home, tmp_path, trick):
    mine, other = (write_model(tmp_path / f"{seed}", seed=seed) for seed in (1, 2))
    expected = Engine(mine).logits([1, 2, 3])
    folder = user_cache.usable_cache("engine")
    (path,) = folder.glob("*.mobilemoe")
    Engine(other)
    (planted,) = set(folder.glob("*.mobilemoe")) - {path}
    planted.rename(tmp_path / "planted")
    path.unlink()
    if trick == "link":
        path.symlink_to(tmp_path / "planted")
    else:
        shutil.copy(tmp_path / "planted", path)
        if trick == "mode":
            path.chmod(0o666)
        else:
            os.chown(path, NOBODY, NOBODY)
    assert not user_cache.is_private(path)
    np.testing.assert_array_equal(Engine(mine).logits([1, 2, 3]), expected)
    assert user_cache.is_private(path)


def unusable(tmp_path, monkeypatch, kind):
    """Makes the environment one of a cache that cannot be."""
    if kind == "open":
        (tmp_path / "open").mkdir()
        (tmp_path / "open").chmod(0o777)
    (tmp_path / "file").write_text("")
    places = {"file": "file", "open": "open", "null": "/dev/null", "proc": "/proc/none", "long": "x" * 300}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / places[kind]))


UNUSABLE = pytest.mark.parametrize("kind", ["file", "open", "null", "proc", "long"])


@UNUSABLE
def test_a_random_model_without_a_cache_lives_as_long_as_its_process(tmp_path, monkeypatch, kind):
    unusable(tmp_path, monkeypatch, kind)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    script = (
        "from mobilemoe.profile.random_model import random_model\n"
        "print(random_model('nano', 'in', print) / 'config.json')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    told, _, written = done.stdout.strip().splitlines()
    assert "cannot be kept" in told
    assert not Path(written).exists()
    assert not list(tmp_path.glob("mobilemoe-*"))


@UNUSABLE
def test_requests_without_a_cache_are_not_kept(tmp_path, monkeypatch, capsys, kind):
    unusable(tmp_path, monkeypatch, kind)
    store = RequestCache({"model": "x"})
    store.put({"a": 1})
    assert store["a"] == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


@as_root
@pytest.mark.parametrize("home", ["/root", "closed", "read-only"])
def test_a_home_that_cannot_be_entered_is_none(tmp_path, home):
    """This is how containers run with --user and the HOME of root."""
    base = Path(tempfile.mkdtemp(dir="/tmp"))
    base.chmod(0o755)
    try:
        place = base / "home"
        place.mkdir(mode=0o555)
        place.chmod(0o700 if home == "closed" else 0o555)
        place = Path(home) if home == "/root" else place
        script = (
            "import os, sys, mobilemoe\n"
            "os.environ['XDG_CACHE_HOME'] = '/dev/null'\n"
            "mobilemoe.load('nano').generate('Hi', max_new_tokens=1)  # imports what the user may not read\n"
            "del os.environ['XDG_CACHE_HOME']\n"
            "print('---', file=sys.stderr)\n"
            f"os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})\n"
            "print(mobilemoe.load('nano').generate('Hello', max_new_tokens=2))"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            env=os.environ | {"HOME": str(place)},
            timeout=120,
        )
        told = done.stderr.split("---\n")[1].splitlines()
        assert done.returncode == 0, done.stderr
        assert "no engine file can be kept" in told[0]
        assert len(told) == 1
    finally:
        shutil.rmtree(base)


# What goes


def fill(home, names):
    """Engine files of a megabyte each, the first used longest ago."""
    folder = user_cache.usable_cache("engine")
    for age, name in enumerate(reversed(names)):
        path = folder / f"{name}.mobilemoe"
        path.write_bytes(bytes(1_000_000))
        user_cache.about(path).write_text(json.dumps({"model": f"/models/{name}"}))
        os.utime(user_cache.about(path), (1e9 - age, 1e9 - age))
    return folder


def test_what_was_used_longest_ago_goes_first(home, monkeypatch):
    folder = fill(home, ["a", "b", "c", "d"])
    os.utime(folder / "a.json")  # used now
    monkeypatch.setenv("MOBILEMOE_CACHE_BYTES", "2.5e6")
    user_cache.prune(folder / "b.mobilemoe")
    assert sorted(path.stem for path in folder.glob("*.mobilemoe")) == ["a", "b", "d"]
    user_cache.prune(folder / "a.mobilemoe")
    assert sorted(path.name for path in folder.iterdir()) == ["a.json", "a.mobilemoe", "d.json", "d.mobilemoe"]


def test_a_new_engine_file_makes_room_for_itself(home, monkeypatch, tmp_path):
    folder = fill(home, ["a", "b"])
    monkeypatch.setenv("MOBILEMOE_CACHE_BYTES", "14e6")
    (folder / ".a.mobilemoe.0123456789ab.part").write_bytes(b"of a killed process")
    model = write_model(tmp_path / "model", seed=1)
    Engine(model)
    kept = [entry for entry in user_cache.entries() if entry.model == str(model)]
    assert len(kept) == 1
    assert sum(entry.bytes for entry in user_cache.entries()) <= 14e6
    assert not list(folder.glob(".*"))


def test_a_model_larger_than_the_limit_is_not_kept(home, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MOBILEMOE_CACHE_BYTES", "1000")
    Engine(write_model(tmp_path / "model", seed=1))
    assert "MOBILEMOE_CACHE_BYTES allows 1,000 bytes" in capsys.readouterr().err
    assert not home.exists()


@pytest.mark.parametrize("nonsense", ["lots", "-1", "nan", "inf", "1e30", "5 GB"])
def test_a_limit_that_is_none_is_refused(monkeypatch, nonsense):
    monkeypatch.setenv("MOBILEMOE_CACHE_BYTES", nonsense)
    with pytest.raises(UsageError, match="MOBILEMOE_CACHE_BYTES is"):
        user_cache.limit()


def test_answers_of_evaluations_are_not_pruned(home, monkeypatch):
    RequestCache({"model": "x"}).put({"a": 1})
    folder = fill(home, ["a", "b"])
    monkeypatch.setenv("MOBILEMOE_CACHE_BYTES", "0")
    user_cache.prune(folder / "b.mobilemoe")
    assert [entry.kind for entry in user_cache.entries()] == ["evaluate", "engine"]


# The verb


def test_ls_and_rm(home):
    fill(home, ["a", "b"])
    random = random_model("nano", "in", lambda _: None)
    RequestCache({"model": "x"}).put({"a": 1})
    listed = json.loads(run_verb("cache", "ls", "--json").stdout)
    assert {entry["name"] for entry in listed["entries"]} >= {"engine/a.mobilemoe", f"random/{random.name}"}
    assert listed["bytes"] == sum(entry["bytes"] for entry in listed["entries"]) > 2_000_000
    assert "/models/b" in run_verb("cache", "ls").stdout
    removed = json.loads(run_verb("cache", "rm", "engine/a.mobilemoe", "--json").stdout)
    assert removed == {"removed": ["engine/a.mobilemoe"], "bytes": 1_000_000}
    assert "3 removed" in run_verb("cache", "rm", "--all").stdout
    assert json.loads(run_verb("cache", "ls", "--json").stdout)["entries"] == []


@pytest.mark.parametrize("arguments", [[], ["engine/none"], ["../engine"], ["engine/a.mobilemoe", "--all"]])
def test_rm_of_what_is_not_there_removes_nothing(home, arguments):
    folder = fill(home, ["a"])
    done = run_verb("cache", "rm", *arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert (folder / "a.mobilemoe").exists()


def test_a_cache_that_cannot_be_used_is_said(tmp_path):
    done = run_verb("cache", "ls", XDG_CACHE_HOME="/dev/null")
    assert done.returncode == 1
    assert "no cache that can be used: /dev/null" in done.stderr


def test_verify_looks_into_the_engine_files_too(home, tmp_path):
    model = write_model(tmp_path / "model", seed=1)
    Engine(model)
    values = json.loads(run_verb("info", model, "--verify", "--json").stdout)
    assert values["verified"]
    (path,) = user_cache.usable_cache("engine").glob("*.mobilemoe")
    data = path.read_bytes()
    path.write_bytes(data[:-400_000] + bytes(400_000))
    done = run_verb("info", model, "--verify")
    assert done.returncode == 1
    assert f"{path} differ" in done.stderr
    assert run_verb("convert", model, tmp_path / "folder", "--format", "engine").returncode == 0
    assert json.loads(run_verb("info", tmp_path / "folder", "--verify", "--json").stdout)["verified"]
    (tmp_path / "folder/model.mobilemoe").write_bytes(data[:-400_000] + bytes(400_000))
    done = run_verb("info", tmp_path / "folder", "--verify")
    assert done.returncode == 1
    assert "model.mobilemoe differ" in done.stderr
