"""A receiver of OTLP traces that keeps them in memory and answers as Phoenix was seen to, for tests of who sends there.

A span whose id it has is ignored whatever it holds; a trace is deleted and read by its id. What the real ones do, their
own tests ask them.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(slots=True)
class OtlpReceiver:
    url: str = ""
    status: int = 200
    """What a POST is answered with; with another one nothing is stored."""
    headers_wanted: dict[str, str] = field(default_factory=dict)
    """Without these a POST is answered with 401."""
    posts: list[tuple[str, ...]] = field(default_factory=list)
    """Of each POST that was accepted, the traces in it (hex)."""
    refused: int = 0
    deleted: list[str] = field(default_factory=list)
    spans: dict[bytes, tuple[str, bytes]] = field(default_factory=dict)
    """By span id: its trace, and its bytes."""
    wire: bytearray = field(default_factory=bytearray)
    """All that arrived, unpacked."""
    before: Callable[[], None] = lambda: None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def traces(self) -> Counter[str]:
        """How many spans each has."""
        with self.lock:
            return Counter(trace for trace, _ in self.spans.values())

    def take(self, headers: Any, body: bytes) -> int:
        self.before()
        with self.lock:
            self.wire += repr(dict(headers)).encode() + body
            is_let_in = all(headers.get(name) == value for name, value in self.headers_wanted.items())
            if headers["content-type"] != "application/x-protobuf":
                return 415
            if self.status != 200 or not is_let_in:
                self.refused += 1
                return self.status if self.status != 200 else 401
            found = list(_spans(body))
            for trace, span, content in found:
                self.spans.setdefault(span, (trace, content))
            self.posts.append(tuple(dict.fromkeys(trace for trace, _, _ in found)))
            return 200

    def delete(self, trace: str) -> int:
        with self.lock:
            gone = [span for span, (of, _) in self.spans.items() if of == trace]
            for span in gone:
                del self.spans[span]
            if gone:
                self.deleted.append(trace)
            return 204 if gone else 404

    def read(self, traces: list[str]) -> list[dict[str, Any]]:
        with self.lock:
            return [
                {"context": {"trace_id": trace, "span_id": span.hex()}, "attributes": dict(_numbers(content))}
                for span, (trace, content) in self.spans.items()
                if trace in traces
            ]


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a Protocol Buffers message."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        number, wire_type = divmod(varint(), 8)
        if wire_type == _VARINT:
            yield number, varint()
            continue
        size = {_FIXED64: 8, _FIXED32: 4}.get(wire_type) or varint()
        yield number, message[at : at + size]
        at += size


def _spans(body: bytes) -> Iterator[tuple[str, bytes, bytes]]:
    """Trace, id and bytes of each span of a request."""
    for resource_spans in (value for number, value in _fields(body) if number == 1):
        for scope_spans in (value for number, value in _fields(resource_spans) if number == 2):
            for span in (value for number, value in _fields(scope_spans) if number == 2):
                told = dict(_fields(span))
                yield told[1].hex(), told[2], span


def _numbers(span: bytes) -> Iterator[tuple[str, int]]:
    """Its attributes that are whole numbers."""
    for attribute in (value for number, value in _fields(span) if number == 9):
        told = dict(_fields(attribute))
        value = dict(_fields(told[2]))
        if 3 in value:
            yield told[1].decode(), value[3]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    receiver: OtlpReceiver

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        body = self.rfile.read(length)
        if len(body) < length:  # the sender was killed while it wrote
            self.close_connection = True
            return
        self._answer(self.receiver.take(self.headers, gzip.decompress(body)))

    def do_DELETE(self) -> None:
        trace = self.path.rpartition("/")[2]
        status = self.receiver.delete(trace)
        self._answer(status, b"" if status == 204 else b"Trace with relay ID or trace_id '?' not found")

    def do_GET(self) -> None:
        asked = parse_qs(urlsplit(self.path).query)
        told = {"data": self.receiver.read(asked.get("trace_id", [])), "next_cursor": None}
        self._answer(200, json.dumps(told).encode())

    def _answer(self, status: int, body: bytes = b"") -> None:
        with suppress(OSError):  # the sender was killed
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def handle(self) -> None:
        with suppress(OSError):
            super().handle()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def otlp_receiver(port: int = 0) -> Iterator[OtlpReceiver]:
    """In a thread of this process."""
    receiver = OtlpReceiver()
    with ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"receiver": receiver})) as server:
        server.daemon_threads = True
        receiver.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="otlp receiver")
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join(20)
