"""benchmarks/peers.py measures in turn and tells ratios. The peers here are stand-ins: llama-bench has no package."""

import json
import shlex
import subprocess
import sys

import pytest

from places import ROOT

STAND_IN = """#!{python}
import json, sys
with open({log!r}, "a") as log:
    print({name!r}, *sys.argv[1:], file=log)
print(json.dumps([{{"avg_ts": 2.0}}, {{"avg_ts": 4.0}}]) if {works} else "no such model")
"""


@pytest.fixture
def stand_in(tmp_path):
    def make(name, works=True):
        path = tmp_path / name
        path.write_text(STAND_IN.format(python=sys.executable, log=str(tmp_path / "log"), name=name, works=works))
        path.chmod(0o755)
        return path

    return make


def compare(*arguments, fails=False):
    command = [sys.executable, ROOT / "benchmarks" / "peers.py", "nano", *arguments, "--idle", 1, "--threads", 1]
    ended = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert (ended.returncode != 0) == fails, ended.stderr
    return ended


def test_peers_take_turns_with_the_same_points_and_the_faster_row_counts(tmp_path, stand_in):
    gguf = tmp_path / "nano.gguf"
    gguf.touch()
    options = ["--prefill", "16", "--depths", "0,32", "--rounds", 2]
    ended = compare(gguf, "--llama", stand_in("llama"), "--ik", stand_in("ik"), *options)
    found = json.loads(ended.stdout.splitlines()[-1])
    for point in ("prefill 16", "decode 0", "decode 32"):
        assert found[point]["mobilemoe"] > 4
        for peer in ("llama.cpp", "ik_llama.cpp"):
            ratio = found[point][peer]["ratio"]
            assert found[point][peer]["tok_s"] == 4
            assert ratio["rounds"] == 2
            assert ratio["quartiles"][0] <= ratio["median"] <= ratio["quartiles"][1]
            assert ratio["median"] == pytest.approx(found[point]["mobilemoe"] / 4, rel=0.01)
        assert f"{point} " in ended.stdout
    calls = [shlex.split(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [name for name, *_ in calls] == 2 * (3 * ["llama"] + 3 * ["ik"])
    for _, *flags in calls:
        assert flags[:8] == ["-m", str(gguf), "-t", "1", "-r", "1", "-o", "json"]
    llama, ik = ["-fa", "0,1"], ["-fa", "1", "-rtr", "1", "-fmoe", "1"]
    prefill, decode, nothing = ["-p", "16", "-n", "0"], ["-p", "0", "-n", "32"], ["-p", "0", "-n", "0"]
    asked = [flags[8:] for _, *flags in calls]
    assert asked[:3] == [[*llama, *prefill], [*llama, *decode], [*llama, *decode, "-d", "32"]]
    assert asked[3:6] == [[*ik, *prefill], [*ik, *decode], [*ik, *nothing, "-gp", "32,32"]]


def test_a_peer_that_measures_nothing_ends_it_with_what_it_said(tmp_path, stand_in):
    gguf = tmp_path / "nano.gguf"
    gguf.touch()
    ended = compare(gguf, "--llama", stand_in("llama", works=False), "--rounds", 1, "--prefill", 16, fails=True)
    assert "llama.cpp measured nothing with -p 16 -n 0 (exit 0): no such model" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_there_has_to_be_a_peer_and_its_files(tmp_path):
    (tmp_path / "nano.gguf").touch()
    assert "no peer is given" in compare(tmp_path / "nano.gguf", fails=True).stderr
    assert "nowhere is not a file" in compare(tmp_path / "nano.gguf", "--ik", "nowhere", fails=True).stderr
