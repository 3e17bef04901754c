from __future__ import annotations

import socket
import threading
from collections.abc import Iterable
from contextlib import closing
from typing import Any

import httpcore
import pytest

from app.exporters import transport
from app.exporters.transport import Transport, trust, within
from tests.support.servers import answer, scripted

Entries = Iterable[tuple[Any, ...]]


def entries(*addresses: str) -> list[tuple[Any, ...]]:
    """What getaddrinfo says of a host with these addresses."""
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]


def test_a_resolver_that_hangs_does_not_outlive_the_deadline() -> None:
    released = threading.Event()

    def hang(_host: str, _port: int) -> Entries:
        released.wait(300)
        return entries("127.0.0.1")

    backend = transport._Backend(hang)
    with within(0.1), pytest.raises(httpcore.ConnectTimeout):
        backend.connect_tcp("helicone.test", 80)
    released.set()


def test_a_dead_address_leaves_time_for_the_next_one() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        backend = transport._Backend(lambda _host, _port: entries("127.9.9.9", "127.0.0.1"))
        with within(20), closing(backend.connect_tcp("helicone.test", listener.getsockname()[1])) as stream:
            assert stream.get_extra_info("server_addr")[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "failure",
    [socket.gaierror(socket.EAI_NONAME, "Name or service not known"), UnicodeError("label too long")],
    ids=["unknown", "no host name"],
)
def test_a_name_without_an_address_cannot_be_connected_to(failure: Exception) -> None:
    def fail(_host: str, _port: int) -> Entries:
        raise failure

    with within(20), pytest.raises(httpcore.ConnectError):
        transport._Backend(fail).connect_tcp("helicone.test", 80)


def test_an_address_needs_no_resolver() -> None:
    def fail(_host: str, _port: int) -> Entries:
        raise AssertionError("asked")

    with closing(socket.create_server(("127.0.0.1", 0))) as listener, within(20):
        transport._Backend(fail).connect_tcp("127.0.0.1", listener.getsockname()[1]).close()


def test_deadlines_of_two_threads_do_not_meet() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        backend = transport._Backend(transport._look_up)
        errors: list[Exception] = []

        def connect() -> None:
            try:
                with within(20):
                    backend.connect_tcp("127.0.0.1", listener.getsockname()[1]).close()
            except httpcore.TimeoutException as error:
                errors.append(error)

        with within(0):
            thread = threading.Thread(target=connect)
            thread.start()
            thread.join(20)
            with pytest.raises(httpcore.ConnectTimeout):
                backend.connect_tcp("127.0.0.1", listener.getsockname()[1])
        assert errors == []


def test_a_connection_that_is_made_while_the_transport_is_closed_is_closed_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker that ends closes it under a thread that is just about to send."""
    real, opened = httpcore.SyncBackend.connect_tcp, []

    with scripted(answer(200)) as server, closing(Transport(trust(None), {})) as made:

        def connect(*arguments: Any) -> httpcore.NetworkStream:
            made.close()
            opened.append(real(*arguments))
            return opened[-1]

        monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", connect)
        assert made.post(server.url, b"{}", 100, 20.0).status == 200
        (stream,) = opened
        assert stream.get_extra_info("socket").fileno() == -1
