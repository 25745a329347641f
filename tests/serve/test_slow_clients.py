"""Clients that send or take too slowly, or connect too often: they lose their connection, and others notice nothing."""

import http.client
import json
import socket
import time

import pytest

from servers import KEY, running

PLAIN = "/v1/completions"
# The same limits, in seconds that a test can wait.
QUICK = """
import mobilemoe.serve.connection as connection
connection.HEAD_SECONDS, connection.BODY_SECONDS, connection.STALL_SECONDS = 1, 1.5, 1
"""


@pytest.fixture(scope="module")
def server():
    with running("--parallel", "4", before=QUICK) as server:
        yield server


def request(body: str, length: int | None = None, **headers: str) -> bytes:
    head = f"POST {PLAIN} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    head += "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    said = "" if "Transfer_Encoding" in headers else f"Content-Length: {len(body) if length is None else length}\r\n"
    return f"{head}Content-Type: application/json\r\n{said}\r\n{body}".encode()


def asked(**fields) -> str:
    return json.dumps({"model": "nano", "prompt": "A", "max_tokens": 2} | fields)


def answers(connection: socket.socket, seconds: float = 60) -> bytes:
    """All that comes until the server ends the connection."""
    connection.settimeout(seconds)
    found = b""
    try:
        while piece := connection.recv(65536):
            found += piece
    except ConnectionResetError:
        pass
    return found


def status(connection: socket.socket) -> int:
    """Takes one whole answer."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    response.read()
    return response.status


def drip(connection: socket.socket, piece: bytes) -> None:
    """Sends `piece` again and again, until the server has had enough."""
    try:
        for _ in range(300):  # half a minute and more, on a busy machine
            connection.sendall(piece)
            time.sleep(0.1)
    except OSError:
        return
    pytest.fail("the connection is still there")


def test_a_silent_connection_ends_without_a_word(server):
    with server.connect() as connection:
        assert answers(connection) == b""


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n", b"A: b\r\n"),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nCookie: ", b"x"),
        (b"", b"\r\n"),
        (b"G", b"E"),
        (request("", length=1000), b" "),
        (request("", Transfer_Encoding="chunked"), b"1\r\n \r\n"),
    ],
    ids=["headers", "one header", "blank lines", "a method", "a body", "chunks without end"],
)
def test_what_is_dripped_ends_in_time(server, start, piece):
    with server.connect() as connection:
        connection.sendall(start)
        drip(connection, piece)
    assert server.health()["status"] == "ready"


@pytest.mark.parametrize("part", [b"GET /health HTTP/1.1\r\nHo", request("{", length=10)], ids=["the head", "the body"])
def test_who_stops_in_the_middle_is_told_so(server, part):
    with server.connect() as connection:
        connection.sendall(part)
        answer = answers(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"] == "the request did not arrive in time"


def test_a_body_refused_by_its_head_is_not_waited_for_longer(server):
    with server.connect() as connection:
        connection.sendall(request("", length=10**9))
        drip(connection, b" " * 1000)
    with server.connect() as connection:
        connection.sendall(request("", length=10**9))
        assert answers(connection).startswith(b"HTTP/1.1 413 ")


def test_each_request_of_a_connection_has_its_own_time():
    with running(before="import mobilemoe.serve.connection as it\nit.HEAD_SECONDS = 4") as server:
        first, second = request(asked())[:20], request(asked())[20:]
        with server.connect() as connection:
            for _ in range(5):  # five seconds together
                connection.sendall(first)
                time.sleep(1)
                connection.sendall(second)
                assert status(connection) == 200


def test_an_idle_connection_is_kept_for_the_next_request(server):
    with server.connect() as connection:
        connection.sendall(request(asked()))
        assert status(connection) == 200
        time.sleep(2.5)  # more than the time for a head, which has not begun
        connection.sendall(request(asked()))
        assert status(connection) == 200


def test_an_answer_may_take_longer_than_a_request(server, nano):
    body = asked(max_tokens=2000, logit_bias=dict.fromkeys(map(str, nano.stop_ids), -100))
    with server.connect() as connection:
        connection.sendall(request(body))
        assert status(connection) == 200


def test_pipelined_requests_are_answered_in_order(server):
    with server.connect() as connection:
        count = 20
        connection.sendall(b"".join(request(asked(max_tokens=1 + at % 3)) for at in range(count)) + b"GET /health HTTP")
        answer = answers(connection)
    parts = answer.split(b"HTTP/1.1 ")[1:]
    assert [part[:3] for part in parts] == [b"200"] * count + [b"408"]
    tokens = [json.loads(part.partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] for part in parts[:-1]]
    assert tokens == [1 + at % 3 for at in range(count)]


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nA\x00: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 20_000,
        b"GET /" + b"a" * 100_000,
        request("", Transfer_Encoding="chunked") + b"zz\r\n",
    ],
    ids=range(11),
)
def test_what_is_no_http_is_a_400_in_json(server, sent):
    with server.connect() as connection:
        connection.sendall(sent)
        answer = answers(connection)
    first = answer.partition(b"\r\n")[0]
    assert first.split()[1] in (b"400", b"401"), first  # 401 where the head was right, and the body is not
    assert json.loads(answer.partition(b"\r\n\r\n")[2].partition(b"HTTP/1.1")[0])["error"]["message"]
    assert server.health()["status"] == "ready"


def test_a_whole_head_of_many_headers_is_refused(server):
    with server.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 200 + b"\r\n")
        assert status(connection) == 431


def test_a_client_that_takes_nothing_of_its_stream_loses_it_and_others_notice_nothing(server):
    """Its texts are 128, so that they do not fit what the system holds for a connection."""
    body = asked(n=128, max_tokens=1000, stream=True, logprobs=20, temperature=1)
    greedy = {"model": "nano", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 20}
    alone = server.client.completions.create(**greedy).choices[0].text
    before = server.metric("generated_tokens_total")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(request(body))
        server.wait_for(running=4)
        assert server.client.completions.create(**greedy).choices[0].text == alone
        server.wait_for(running=0, waiting=0)
    tokens = server.metric("generated_tokens_total") - before
    assert tokens < 64_000, "half of what was asked for"


def test_a_thousand_idle_connections_do_not_keep_others_out():
    with running(before="import mobilemoe.serve.connection as it\nit.HEAD_SECONDS = 600") as server:
        server.http.get("/v1/models")
        before = server.memory()
        idle = [server.connect() for _ in range(1000)]
        try:
            for _ in range(5):
                connection = server.connect()
                connection.sendall(request(asked()))
                assert status(connection) == 200
                connection.close()
            assert server.memory() - before < 64
            gone = 0
            for connection in idle:
                connection.settimeout(0)
                try:
                    gone += connection.recv(1) == b""
                except BlockingIOError:
                    continue
                except ConnectionResetError:
                    gone += 1
            assert 400 < gone < 700, "the oldest beyond 512 were closed"
        finally:
            for connection in idle:
                connection.close()


def test_connections_beyond_the_limit_do_not_end_an_answer():
    changed = "import mobilemoe.serve.connection as connection\nconnection.MAX_CONNECTIONS = 8"
    with running(before=changed) as server, server.connect() as served:
        body = asked(max_tokens=1500, stream=True, temperature=0)
        served.sendall(request(body))
        assert served.recv(100).startswith(b"HTTP/1.1 200 ")
        others = [server.connect() for _ in range(50)]
        found = b""
        while b"[DONE]" not in found:
            piece = served.recv(65536)
            assert piece, "the answer was cut"
            found += piece
        for connection in others:
            connection.close()
