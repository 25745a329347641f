"""Server processes on the bundled model, for tests that ask them."""

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import psutil

KEY = "a long secret"
# A server that never ends an answer by itself and takes 20 ms for each token, whatever the machine: 2,000 take 40 s.
SLOW = """
import time
from mobilemoe.engine.batch import Batch
from mobilemoe.load import Model
attempt = Batch.attempt
def slowly(self):
    for told in attempt(self):
        time.sleep(0.02)
        yield told
Batch.attempt = slowly
Model.stop_ids = property(lambda self: frozenset())
"""


class Server:
    """`seed`: of each text whose request has none, so that every run of the tests sees the same one; None: chance."""

    def __init__(
        self,
        *options: str,
        key: str | None = KEY,
        model: str = "nano",
        before: str = "",
        stderr: int | None = None,
        seed: int | None = 1,
    ) -> None:
        if seed is not None:
            before = f"import secrets\nsecrets.randbits = lambda bits: {seed}\n{before}"
        program = f"{before}\nimport sys\nfrom mobilemoe.cli.main import main\nsys.exit(main())"
        command = [sys.executable, "-c", program, "serve", model, "--port", "0", "--threads", "1", "--json"]
        self.process = subprocess.Popen(
            [*command, *options, *(["--api-key", key] if key else [])],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        assert self.process.stdout is not None
        ready = json.loads(self.process.stdout.readline())
        self.name = ready["model"]
        self.root = ready["address"].removesuffix("/v1")
        self.port = int(self.root.rpartition(":")[2])
        self.client = openai.OpenAI(base_url=f"{self.root}/v1", api_key=key or "none", max_retries=0, timeout=60)
        self.http = httpx.Client(base_url=self.root, headers={"Authorization": f"Bearer {key}"}, timeout=60)

    def health(self) -> dict:
        return self.http.get("/health").json()

    def connect(self) -> socket.socket:
        """A bare connection, for what no client of HTTP sends."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def memory(self) -> float:
        """MiB that the process has in memory."""
        return psutil.Process(self.process.pid).memory_info().rss / 2**20

    def worked(self) -> float:
        """Seconds of a processor that the process has used: unlike a clock's they tell nothing of other processes."""
        return sum(psutil.Process(self.process.pid).cpu_times()[:2])

    def metric(self, name: str) -> float:
        lines = self.http.get("/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"mobilemoe_{name} "))

    def wait_for(self, **state: object) -> None:
        """Until the server says so of its health."""
        until = time.monotonic() + 30
        while not state.items() <= (seen := self.health()).items():
            assert time.monotonic() < until, seen
            time.sleep(0.02)


@contextlib.contextmanager
def running(*options: str, **named: Any) -> Iterator[Server]:
    """`model` is what the verb is given, `before` a program that changes the server's limits before it starts."""
    server = Server(*options, **named)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate()
