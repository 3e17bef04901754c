"""What the local servers do with connections: who sends no whole request is not waited for, and locks nobody out."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from app.pages import loopback

HALVES = (
    "",
    "GET / HTTP/1.1\r\nHost: localhost\r\n",
    "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc",
)
WHOLE = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def read_all(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that answers when the whole body is here."""
    while scope["type"] == "http" and (await receive()).get("more_body"):
        pass
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@contextmanager
def serving(request_s_max: float) -> Iterator[int]:
    with loopback.listening("127.0.0.1", 0) as bound:
        server = loopback.server(loopback.CalledByName(read_all), request_s_max)
        server.config.lifespan = "off"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="server")
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield bound.getsockname()[1]
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def port() -> Iterator[int]:
    with serving(loopback.REQUEST_S_MAX) as made:
        yield made


@pytest.mark.parametrize(
    ("before", "half"),
    [(b"", HALVES[0]), (b"", HALVES[1]), (b"", HALVES[2]), (WHOLE, HALVES[1]), (WHOLE, HALVES[2])],
    ids=["nothing", "head", "body", "second head", "second body"],
)
def test_a_connection_without_a_whole_request_is_closed(before: bytes, half: str) -> None:
    with serving(0.2) as port, socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        if before:
            connection.sendall(before)
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
        connection.sendall(half.encode())
        with suppress(ConnectionResetError):
            assert not connection.recv(1000).startswith(b"HTTP/1.1 200 ")


@pytest.mark.slow
def test_many_that_send_half_a_request_lock_nobody_out(port: int) -> None:
    with ExitStack() as opened:
        for _ in range(loopback.CONNECTIONS_MAX * 3):
            connection = opened.enter_context(closing(socket.create_connection(("127.0.0.1", port), timeout=20)))
            connection.sendall(HALVES[1].encode())
        assert httpx.get(f"http://127.0.0.1:{port}", trust_env=False, timeout=5).status_code == 200


@pytest.mark.slow
def test_many_that_were_answered_and_stay_lock_nobody_out(port: int) -> None:
    """As one that asks for nothing and comes again and again would."""
    with ExitStack() as opened:
        for _ in range(loopback.CONNECTIONS_MAX + 20):
            connection = opened.enter_context(closing(socket.create_connection(("127.0.0.1", port), timeout=20)))
            connection.sendall(WHOLE)
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("site", "status"), [("cross-site", 403), ("same-site", 403), ("none", 200), ("same-origin", 200)]
)
def test_what_another_web_page_asks_for_is_refused(port: int, site: str, status: int) -> None:
    answer = httpx.post(f"http://127.0.0.1:{port}", headers={"sec-fetch-site": site}, content=b"x", trust_env=False)
    assert answer.status_code == status
