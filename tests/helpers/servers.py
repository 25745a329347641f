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


class Server:
    def __init__(
        self, *options: str, key: str | None = KEY, model: str = "nano", before: str = "", stderr: int | None = None
    ) -> None:
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
        self.client = openai.OpenAI(base_url=f"{self.root}/v1", api_key=key or "none", max_retries=0, timeout=30)
        self.http = httpx.Client(base_url=self.root, headers={"Authorization": f"Bearer {key}"}, timeout=30)

    def health(self) -> dict:
        return self.http.get("/health").json()

    def connect(self) -> socket.socket:
        """A bare connection, for what no client of HTTP sends."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def memory(self) -> float:
        """MiB that the process has in memory."""
        return psutil.Process(self.process.pid).memory_info().rss / 2**20

    def wait_for(self, **counts: int) -> None:
        until = time.monotonic() + 20
        while not counts.items() <= (seen := self.health()).items():
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
