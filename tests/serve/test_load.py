"""Many clients at a time, some of which leave or ask for nonsense: every request is answered, with the right text."""

import json
import subprocess
import sys

import pytest

from places import ROOT
from servers import KEY, running


def loaded(server, *options: str) -> dict:
    command = [sys.executable, str(ROOT / "benchmarks" / "serve_load.py"), "--url", f"{server.root}/v1", "--key", KEY]
    command += ["--expect", "nano", "--pid", str(server.process.pid), *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(ended.stdout)
    assert found["faults"] == {}
    assert {"answered", "cancelled", "refused as it should be"} <= found["ended"].keys()
    server.wait_for(running=0, waiting=0)
    return found


@pytest.mark.parametrize("options", [(), ("--parallel", "3", "--queue", "4")], ids=["usual", "a queue that is full"])
def test_300_requests_50_at_a_time(options):
    with running(*options) as server:
        found = loaded(server, "--requests", "300", "--at-once", "50")
    ended = found["ended"]
    assert sum(count for how, count in ended.items() if how != "asked again after 429") == 300
    assert ("asked again after 429" in ended) == bool(options)
    assert found["rss"]["most"] < 400


@pytest.mark.slow
def test_10_000_requests_200_at_a_time_leave_the_memory_flat():
    with running() as server:
        found = loaded(server, "--requests", "10000", "--at-once", "200")
    assert found["rss"]["slope_per_1000"] < 1
