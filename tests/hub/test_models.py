"""`mobilemoe ls` and `rm`: what is on this machine, and that it goes."""

import json
import os
import pty
import subprocess
import sys
import time

MODEL = "org/nano"


def listed(call, **variables):
    done = call("ls", "--json", **variables)
    assert done.status == 0, done.err
    return {row["name"]: row for row in json.loads(done.out)["models"]}


def stored_bytes(*folders):
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum(path.stat().st_size for path in files)


def test_ls_lists_what_is_bundled_and_what_was_downloaded(call, nano_files):
    assert list(listed(call)) == ["nano"]
    call("run", MODEL, "Hello", "--max-new-tokens", 1)
    rows = listed(call)
    assert rows["nano"]["bundled"] is True
    row = rows[MODEL]
    assert (row["bundled"], row["complete"]) == (False, True)
    assert row["revisions"] == {"a" * 40: ["main"]}
    assert row["bytes"] - sum(map(len, nano_files.values())) in range(10_000)  # the library's notes
    assert row["engine_bytes"] > 29_000_000
    used = time.mktime(time.strptime(row["used"], "%Y-%m-%dT%H:%M:%SZ")) - time.timezone
    assert abs(time.time() - used) < 60
    shown = call("ls").out
    assert "aaaaaaaa main" in shown
    assert "30.2" in shown


def test_the_last_use_is_that_of_the_last_verb(call):
    call("pull", MODEL)
    (config,) = call.home.rglob("snapshots/*/config.json")
    os.utime(config, (1_000_000_000, 1_000_000_000))
    assert listed(call)[MODEL]["used"].startswith("2001-")
    call("info", MODEL)
    assert not listed(call)[MODEL]["used"].startswith("2001-")


def test_a_download_that_has_not_ended_is_listed_as_such_and_can_be_removed(call, hub):
    hub.slow = 0.02
    with subprocess.Popen([sys.executable, "-m", "mobilemoe", "pull", MODEL], env=call.environment()) as process:
        while not any(part.stat().st_size > 10_000_000 for part in call.home.rglob("*.part")):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    row = listed(call)[MODEL]
    assert row["complete"] is False
    assert row["bytes"] > 10_000_000
    assert "(incomplete)" in call("ls").out
    assert call("rm", MODEL, "--yes").status == 0
    assert list(listed(call)) == ["nano"]


def test_rm_frees_what_it_says_and_takes_the_engines_files_along(call, tmp_path):
    call("run", MODEL, "Hello", "--max-new-tokens", 1)
    call("run", "nano", "Hello", "--max-new-tokens", 1)
    places = (call.home / "hub", tmp_path / "cache" / "mobilemoe" / "engine")
    before = stored_bytes(*places)
    done = call("rm", MODEL, "--yes", "--json")
    freed = before - stored_bytes(*places)
    assert json.loads(done.out) == {"removed": MODEL, "bytes": freed}
    assert freed > 59_000_000
    assert list(listed(call)) == ["nano"]
    assert call("run", "nano", "Hello", "--max-new-tokens", 1, HF_HUB_OFFLINE="1").status == 0


def test_rm_asks_on_a_terminal_and_nowhere_else(call):
    call("pull", MODEL)
    unasked = call("rm", MODEL)
    assert unasked.status == 2
    assert "say --yes" in unasked.err
    for answer, left in (("n", 2), ("y", 1)):
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "mobilemoe", "rm", MODEL]
        with subprocess.Popen(
            command, env=call.environment(), stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            os.write(ours, f"{answer}\n".encode())
            _, asked = process.communicate(timeout=120)
        os.close(ours)
        os.close(theirs)
        assert f"Remove {MODEL} (30.2 MB" in asked
        assert process.returncode == left - 1
        assert len(listed(call)) == left


def test_rm_refuses_what_is_bundled_or_not_there(call):
    bundled = call("rm", "nano", "--yes")
    assert bundled.status == 2
    assert "is part of the package" in bundled.err
    assert "has not been downloaded" in call("rm", "org/none", "--yes").err
