"""Downloads from a Hub on this machine, by the Hub's own client: what is fetched, what a break costs, what is said."""

import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

MODEL = "org/nano"
ASKED = ["run", MODEL, "Hello", "--max-new-tokens", "4"]


def resolved(hub) -> set[str]:
    return {path.rsplit("/", 1)[1] for path in hub.paths("GET") if "/resolve/" in path}


def large_requests(hub) -> list[str | None]:
    """The ranges asked of the storage of large files."""
    return [asked for method, path, asked in hub.asked if method == "GET" and path.startswith("/storage/")]


def wait_until(happens, process):
    until = time.monotonic() + 60
    while not happens():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)


def has_begun(call) -> bool:
    """Whether the first 10 MiB are on the disk; what a server has sent may still be on its way."""
    return any(part.stat().st_size > 10_000_000 for part in call.home.rglob("*.part"))


def test_a_verb_downloads_what_it_needs_once_and_then_works_without_a_network(call, hub, nano_files):
    first = call(*ASKED)
    assert first.status == 0, first.err
    assert resolved(hub) == set(nano_files)
    assert hub.sent == len(nano_files["model.safetensors"])
    hub.asked.clear()
    again = [call(*ASKED), call(*ASKED, HF_HUB_OFFLINE="1"), call(*ASKED, HF_ENDPOINT="http://127.0.0.1:9")]
    assert [done.out for done in again] == [first.out] * 3
    assert hub.asked == []


def test_pull_fetches_a_newer_version_and_says_if_there_is_none(call, hub, nano_files):
    assert "downloaded, 30.2 MB" in call("pull", MODEL).out
    assert "nothing to download" in call("pull", MODEL).out
    assert "nothing to download" in call("pull", "nano").out
    hub.models[MODEL]["v1"] = nano_files | {"README.md": b"# Another"}
    sent = hub.sent
    assert "downloaded" in call("pull", f"{MODEL}@v1").out
    assert hub.sent == sent  # the same weights
    assert "nothing to download" in call("pull", f"{MODEL}@v1").out


def test_a_connection_that_breaks_is_continued(call, hub, nano_files):
    hub.cut_after, hub.cuts = 12_000_000, 2  # the client writes 10 MiB at a time
    done = call("pull", MODEL)
    assert done.status == 0, done.err
    first, *later = large_requests(hub)
    assert first is None
    assert len(later) == 2
    assert all(int(asked.removeprefix("bytes=").rstrip("-")) > 10_000_000 for asked in later)
    assert hub.sent < len(nano_files["model.safetensors"]) + 2 * 12_000_000


@pytest.mark.parametrize("with_ranges", [True, False])
def test_a_killed_download_goes_on_where_it_was(call, hub, with_ranges):
    hub.slow = 0.02
    command = [sys.executable, "-m", "mobilemoe", "pull", MODEL]
    with subprocess.Popen(command, env=call.environment(), stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: has_begun(call), process)
        process.kill()
    hub.slow, hub.without_ranges = 0.0, not with_ranges
    hub.asked.clear()
    assert call("pull", MODEL).status == 0
    (asked,) = large_requests(hub)
    assert int(asked.removeprefix("bytes=").rstrip("-")) > 10_000_000
    assert call(*ASKED, HF_HUB_OFFLINE="1").status == 0


@pytest.mark.parametrize("verb", [["pull"], ["serve", "--port", "0"]], ids=["pull", "serve"])
def test_ctrl_c_ends_a_download_at_once_and_keeps_what_came(call, hub, verb):
    hub.slow = 0.03
    command = [sys.executable, "-m", "mobilemoe", *verb, MODEL]
    with subprocess.Popen(command, env=call.environment(), stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: has_begun(call), process)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "mobilemoe: interrupted"
    (part,) = call.home.rglob("*.part")
    assert 10_000_000 < part.stat().st_size < 29_000_000


def test_a_download_shows_a_bar_on_a_terminal(call, hub):
    hub.slow = 0.003
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "mobilemoe", "pull", MODEL]
    with subprocess.Popen(command, env=call.environment(), stderr=theirs, stdout=subprocess.PIPE, text=True) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # the other end is closed
            while piece := os.read(ours, 65536):
                shown += piece
        out, _ = process.communicate(timeout=120)
    os.close(ours)
    assert "org/nano (MB)" in shown.decode()
    assert "━" in shown.decode()
    assert len(out.splitlines()) == 1


def test_what_arrives_damaged_is_not_kept(refused, call, hub):
    hub.damaged = True
    assert "arrived damaged, by its SHA-256" in refused("pull", MODEL)
    assert not list(call.home.rglob("*.part"))
    hub.damaged = False
    assert call("pull", MODEL).status == 0


def test_a_gated_model_says_which_page_to_accept_and_where_the_token_goes(refused, call, hub):
    hub.gated = {MODEL}
    without = refused(*ASKED)
    with_another = refused("pull", MODEL, HF_TOKEN="other")
    for text in (without, with_another):
        assert f"{hub.url}/{MODEL}" in text
        assert "accept its licence" in text
        assert "HF_TOKEN or " in text
        assert "`hf auth login`" in text
    assert "your token" in with_another
    assert not list(call.home.rglob("models--*"))  # nothing is left of the attempts
    assert call("pull", MODEL, HF_TOKEN="good").status == 0


def test_a_token_that_is_none_is_said_to_be_the_reason(refused):
    assert "does not accept your token (HF_TOKEN or `hf auth login`)" in refused("pull", MODEL, HF_TOKEN="wrong")


def test_what_the_hub_does_not_have_is_one_sentence(refused, hub):
    assert "the Hub has no model of that name" in refused("chat", "org/none")
    assert f"{MODEL} has no revision v9" in refused("pull", f"{MODEL}@v9")
    hub.models["org/data"] = {"main": {"data.csv": b"1,2"}}
    assert "is no model for this program: it lacks config.json" in refused("serve", "org/data")
    hub.error = 503
    assert "answered 503" in refused("info", "org/none")


def test_without_a_network_a_model_that_is_not_here_is_one_sentence(refused):
    assert "HF_HUB_OFFLINE forbids" in refused(*ASKED, HF_HUB_OFFLINE="1")
    text = refused(*ASKED, HF_ENDPOINT="http://127.0.0.1:9")
    assert "(http://127.0.0.1:9) does not give org/nano: " in text
    assert "kept" not in text


def test_a_place_that_cannot_be_written_is_named(refused, tmp_path):
    (tmp_path / "file").write_text("")
    text = refused("pull", MODEL, HF_HOME=str(tmp_path / "file"))
    assert f"{tmp_path / 'file'}" in text
    assert "cannot be written" in text


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 40 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_one_sentence_before_and_during_a_download(refused, call, hub, small_disk):
    filler = small_disk / "filler"
    filler.write_bytes(bytes(20_000_000))
    text = refused("pull", MODEL, HF_HOME=str(small_disk))
    assert "needs 30 MB more" in text
    assert hub.sent == 0
    filler.unlink()
    hub.slow = 0.02
    command = [sys.executable, "-m", "mobilemoe", "pull", MODEL]
    environment = call.environment(HF_HOME=str(small_disk))
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: any(part.stat().st_size > 10_000_000 for part in small_disk.rglob("*.part")), process)
        filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 2_000_000))
        _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    lines = [line for line in said.splitlines() if not line.startswith(f"{MODEL} (MB): ")]
    assert len(lines) == 1
    assert f"the disk of {small_disk}/hub is full" in said
    filler.unlink()
    hub.slow = 0.0
    hub.asked.clear()
    assert call("pull", MODEL, HF_HOME=str(small_disk)).status == 0
    (asked,) = large_requests(hub)
    assert int(asked.removeprefix("bytes=").rstrip("-")) > 10_000_000
