"""Who may ask: every route wants the key, and the key is compared without a hint of how much of it was right."""

import asyncio
import hmac

import httpx
import pytest

from mobilemoe.serve import guard
from mobilemoe.serve.guard import Guard
from mobilemoe.serve.page import PATHS
from servers import KEY


def test_every_route_of_the_schema_refuses_strangers(server):
    schema = server.http.get("/openapi.json").json()
    routes = [(method, path) for path, each in schema["paths"].items() for method in each]
    assert len(routes) > 10
    with httpx.Client(base_url=server.root) as stranger:
        for method, path in routes:
            response = stranger.request(method, path, json={} if method == "post" else None)
            assert response.status_code == (200 if path == "/health" else 401), (method, path)


@pytest.mark.parametrize("path", ["/health/", "//health", "/Health", "/health/../v1/models", "/health;v1", "/page/"])
def test_no_other_spelling_of_an_open_path_is_open(server, path):
    with server.connect() as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")


def test_what_is_open_holds_no_secret(server):
    with httpx.Client(base_url=server.root) as stranger:
        for path in ("/health", *PATHS):
            response = stranger.get(path)
            assert response.status_code == 200
            assert KEY not in response.text
            assert KEY not in str(response.headers)


def test_keys_are_compared_in_constant_time(monkeypatch):
    compared = []

    def compare(given, right):
        compared.append((given, right))
        return hmac.compare_digest(given, right)

    monkeypatch.setattr(guard, "hmac", type("Hmac", (), {"compare_digest": staticmethod(compare)}))
    sent = []

    async def ask(given):
        headers = [(b"authorization", b"Bearer " + given)]
        scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": headers}

        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})

        async def receive():
            return {"type": "http.request"}

        async def send(message):
            sent.append(message)

        await Guard(app, api_key="secret", local_only=True)(scope, receive, send)

    for given, status in ((b"secret", 200), (b"secreT", 401), (b"", 401), (b"\xe9", 401)):
        sent.clear()
        asyncio.run(ask(given))
        assert sent[0]["status"] == status
    assert [given for given, _ in compared] == [b"secret", b"secreT", b"", b"\xe9"]
