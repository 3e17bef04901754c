"""Servers for tests, all on loopback and on a free port: the receiver, and one whose every byte is scripted.

with receiving(tmp_path / "store.db") as receiver:      the real receiver, in a thread
with scripted(answer(503), reset(), ok()) as server:    one act per request, the last one again and again
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from app.pages import loopback
from app.receiver import server as receiver_module
from app.receiver import store as shelf
from app.receiver.faults import Fault

Act: TypeAlias = Callable[["Exchange"], None]


def api_key(letter: str = "a", region: str = "") -> str:
    """A well-formed key, put together here so that no file holds one."""
    return "-".join(["sk", "helicone", *([region] if region else []), *[letter * 7] * 4])


# --- the receiver ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Receiver:
    """A running receiver and what it holds."""

    url: str
    store: Path
    key: str = ""
    """One that it knows; '' where it takes every one."""

    def fault(self, *faults: dict[str, Any]) -> None:
        """Script what goes wrong next, as fields of `app.receiver.faults.Fault`; replaces the script so far."""
        request = urllib.request.Request(
            f"{self.url}/_faults",
            json.dumps(faults).encode(),
            {"content-type": "application/json", "authorization": f"Bearer {self.key}"},
        )
        with _direct.open(request, timeout=10):
            pass

    def sends(self) -> list[shelf.Send]:
        """Every POST that arrived, in order, answered or not."""
        with shelf.opened(self.store) as db:
            return shelf.sends(db)

    def rows(self) -> list[shelf.Stored]:
        """Everything stored, under whatever key, by start time."""
        with shelf.opened(self.store) as db:
            owners = [row[0] for row in db.execute("select distinct organisation from log order by 1")]
            found = [
                shelf.select(db, owner, ("true", []), newest_first=False, limit=100_000, offset=0) for owner in owners
            ]
        return sorted((row for rows in found for row in rows), key=lambda row: row.log.created_ms)

    def wire(self) -> bytes:
        """All bytes of all bodies that arrived, for tests that search them."""
        with shelf.opened(self.store) as db:
            return b"\n".join(zlib.decompress(row["body"]) for row in db.execute("select body from send order by n"))

    def organisation(self, key: str) -> str | None:
        """How `sends` and `rows` name the owner of `key`."""
        with shelf.opened(self.store) as db:
            return shelf.organisation(db, key)


# Tests set proxies; none of them is for talking to the receiver itself.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextmanager
def receiving(store: Path, *faults: Fault, keys: frozenset[str] | None = None, port: int = 0) -> Iterator[Receiver]:
    """The real receiver in a thread. `keys`: those that it knows; None: every well-formed one."""
    ready = threading.Event()
    with loopback.listening("127.0.0.1", port) as bound:
        app = receiver_module.create(store, keys=keys, script=faults, on_ready=ready.set)
        server = loopback.server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="receiver")
        thread.start()
        try:
            assert ready.wait(20), "the receiver did not start"
            yield Receiver(loopback.address(bound), store, min(keys or {""}))
        finally:
            server.should_exit = True
            thread.join(20)


# --- the scripted server ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Heard:
    """One request as it came over the wire."""

    line: str
    headers: dict[str, str]
    """By lower-case name."""
    header_names: list[str]
    """As sent."""
    body: bytes


@dataclass(slots=True)
class Exchange:
    """One request, whose head has been read, and the connection to answer it on."""

    connection: socket.socket
    server: Scripted
    stopped: threading.Event
    """Set when the test is over: whoever is slow ends."""
    heard: Heard
    body_bytes_left: int

    def read_body(self) -> None:
        """Read what the request says it holds, and note it as heard."""
        held = bytearray(self.heard.body)
        while self.body_bytes_left > 0:
            chunk = self.connection.recv(65536)
            if not chunk:
                break
            held += chunk
            self.body_bytes_left -= len(chunk)
        self.heard = replace(self.heard, body=bytes(held))
        self.server.requests.append(self.heard)

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)


@dataclass(slots=True)
class Scripted:
    """A running scripted server."""

    url: str
    requests: list[Heard] = field(default_factory=list)
    """Those that were read to their end, in order; noted before they are answered."""
    connections: int = 0
    """How many were made so far."""
    open: list[socket.socket] = field(default_factory=list)


@contextmanager
def scripted(*acts: Act, certificate: Path | None = None) -> Iterator[Scripted]:
    """A server that plays one act per request; the last one for all that follow. `certificate`: it speaks TLS."""
    stopped = threading.Event()
    threads: list[threading.Thread] = []
    turn = iter(acts)
    lock = threading.Lock()
    last = [acts[-1]]

    def next_act() -> Act:
        with lock:
            return next(turn, last[0])

    with closing(socket.create_server(("127.0.0.1", 0), backlog=64)) as listener:
        # Small, so that a slow reader is felt by the sender before megabytes lie in between.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * 1024)
        scheme = "http" if certificate is None else "https"
        server = Scripted(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}")

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                server.connections += 1
                thread = threading.Thread(target=_converse, args=(connection, certificate, server, stopped, next_act))
                threads.append(thread)
                thread.start()

        acceptor = threading.Thread(target=accept, name="acceptor")
        acceptor.start()
        try:
            yield server
        finally:
            stopped.set()
            # Closing a listener does not wake its accept on Linux; shutting it down does. On macOS it is the reverse.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            # A client that keeps its connection must not keep the test.
            for connection in server.open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            for thread in (acceptor, *threads):
                thread.join(20)


def _converse(
    connection: socket.socket,
    certificate: Path | None,
    server: Scripted,
    stopped: threading.Event,
    next_act: Callable[[], Act],
) -> None:
    with closing(connection), contextlib.suppress(OSError):
        connection.settimeout(20)
        talk = connection
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            talk = context.wrap_socket(connection, server_side=True)
        with closing(talk):
            server.open.append(talk)
            while not stopped.is_set() and (exchange := _head(talk, server, stopped)) is not None:
                next_act()(exchange)


def _head(connection: socket.socket, server: Scripted, stopped: threading.Event) -> Exchange | None:
    held = b""
    while b"\r\n\r\n" not in held:
        chunk = connection.recv(65536)
        if not chunk:
            return None
        held += chunk
    head, body = held.split(b"\r\n\r\n", 1)
    line, *lines = head.decode("latin-1").split("\r\n")
    pairs = [one.split(": ", 1) for one in lines]
    heard = Heard(line, {name.lower(): value for name, value in pairs}, [name for name, _ in pairs], body)
    return Exchange(connection, server, stopped, heard, int(heard.headers.get("content-length", 0)) - len(body))


def self_signed(folder: Path) -> Path:
    """A self-signed certificate for 127.0.0.1 and its key, in one file. Skips the test where openssl is missing."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command")
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=loopback",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem", "-out", folder / "only.pem"],
        check=True,
        capture_output=True,
    )  # fmt: skip
    both = folder / "both.pem"
    both.write_bytes((folder / "key.pem").read_bytes() + (folder / "only.pem").read_bytes())
    return both


def forwarded(url: str) -> Act:
    """What the server at this address answers."""

    def act(exchange: Exchange) -> None:
        exchange.read_body()
        method, path, _ = exchange.heard.line.split(" ")
        kept = {name: text for name, text in exchange.heard.headers.items() if name not in {"host", "content-length"}}
        request = urllib.request.Request(url + path, exchange.heard.body or None, kept, method=method)
        with _direct.open(request, timeout=10) as found:
            exchange.send(whole(found.status, found.read(), {"content-type": found.headers["content-type"]}))

    return act


def answer(status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> Act:
    """A complete answer to a completely read request."""

    def act(exchange: Exchange) -> None:
        exchange.read_body()
        exchange.send(whole(status, body, headers))

    return act


def ok() -> Act:
    """What a worker answers when all is well."""

    def act(exchange: Exchange) -> None:
        exchange.read_body()
        exchange.send(whole(200, b"ok", {"helicone-id": request_id_of(exchange.heard.body)}))

    return act


def whole(status: int, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    """The bytes of an HTTP answer."""
    lines = [f"HTTP/1.1 {status} Scripted", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def request_id_of(body: bytes) -> str:
    return str(json.loads(body)["providerRequest"]["meta"]["Helicone-Request-Id"])


def drip(data: bytes, *, interval_s: float = 0.05) -> Act:
    """`data` byte by byte: always alive, never done in time."""

    def act(exchange: Exchange) -> None:
        exchange.read_body()
        for byte in data:
            exchange.send(bytes([byte]))
            if exchange.stopped.wait(interval_s):
                return

    return act


def sip(data: bytes, *, bytes_each: int, interval_s: float) -> Act:
    """Reads the request in small sips, then answers `data`: a slow upload."""

    def act(exchange: Exchange) -> None:
        while exchange.body_bytes_left > 0 and not exchange.stopped.wait(interval_s):
            chunk = exchange.connection.recv(bytes_each)
            if not chunk:
                raise ConnectionAbortedError("the client hung up")
            exchange.body_bytes_left -= len(chunk)
        exchange.send(data)

    return act


def silent() -> Act:
    """Reads the request and never answers: it hangs until the test is over."""

    def act(exchange: Exchange) -> None:
        exchange.read_body()
        exchange.stopped.wait()

    return act


def partial(data: bytes) -> Act:
    """Sends `data` and hangs up, whether the answer is complete or not."""

    def act(exchange: Exchange) -> None:
        exchange.read_body()
        exchange.send(data)
        exchange.connection.shutdown(socket.SHUT_RDWR)

    return act


def reset() -> Act:
    """Reads the request and resets the connection."""

    def act(exchange: Exchange) -> None:
        exchange.read_body()
        # No lingering: closing sends RST instead of FIN.
        exchange.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        exchange.connection.close()

    return act


@contextmanager
def nobody() -> Iterator[str]:
    """An address on which nothing listens, and nothing can begin to while the test runs."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
