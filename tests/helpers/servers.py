"""Server processes on the bundled model, for tests that ask them."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import openai

KEY = "a long secret"


class Server:
    def __init__(self, *options: str, key: str | None = KEY, model: str = "nano") -> None:
        command = [sys.executable, "-m", "mobilemoe", "serve", model, "--port", "0", "--threads", "1", "--json"]
        self.process = subprocess.Popen(
            [*command, *options, *(["--api-key", key] if key else [])], stdout=subprocess.PIPE, text=True
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

    def wait_for(self, **counts: int) -> None:
        until = time.monotonic() + 20
        while not counts.items() <= (seen := self.health()).items():
            assert time.monotonic() < until, seen
            time.sleep(0.02)


@contextlib.contextmanager
def running(*options: str, key: str | None = KEY, model: str = "nano") -> Iterator[Server]:
    """`model` is what the verb is given."""
    server = Server(*options, key=key, model=model)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate()
