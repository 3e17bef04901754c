"""A receiver that keeps everything in memory, for tests that send much or start many: it answers as jawn does.

    with lean_receiver() as receiver:          in a thread of this process
    python -m tests.support.lean_receiver SEED SHARE   in a process of its own, asked by lines on stdin (`LeanProcess`)

Faults come by dice: of `share` of all POSTs a quarter each are answered with 429 and 500, answered late, or broken off
with a reset, half of these after they were stored. The dice are thrown by (seed, request id, number of the send), so
that a seed says what each record meets, whatever the order.
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.asked_process import AskedProcess, asked_process
from tests.support.servers import request_id_of, whole

FAULTS = ("429", "500", "slow", "reset")
SLOW_S = (0.3, 1.5)
FAILED = frozenset({"429", "500", "reset"})
"""Answers after which a record must be sent again."""


def digest_of(body: bytes) -> str:
    """Hex of the first half of its SHA-256, as the ledger tells versions of a record apart."""
    return hashlib.sha256(body).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Send:
    """One POST that arrived."""

    request_id: str
    digest: str
    answer: str
    """`ok` or one of FAULTS."""
    stored: bool
    authorization: str = field(default="", repr=False)


@dataclass(slots=True)
class LeanReceiver:
    """What arrived. `usual_s`: between which bounds an answer takes its time when nothing is wrong."""

    seed: int = 0
    share: float = 0.0
    usual_s: tuple[float, float] = (0.0, 0.0)
    pauses_s: dict[str, float] = field(default_factory=dict)
    """By request id, instead of `usual_s`."""
    url: str = ""
    sends: list[Send] = field(default_factory=list)
    bodies: dict[str, bytes] = field(default_factory=dict)
    """By digest, of what was stored."""
    under_way: dict[int, str] = field(default_factory=dict)
    """Request ids by the sender's port: read, and not yet answered."""
    _counts: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def arrive(self, port: int, body: bytes, authorization: str = "") -> tuple[Send, float]:
        """Note a POST and throw its dice: the send, and after how many seconds it is answered."""
        request_id = request_id_of(body)
        digest = digest_of(body)
        with self._lock:
            self._counts[request_id] += 1
            dice = random.Random(f"{self.seed} {request_id} {self._counts[request_id]}")  # noqa: S311 - nothing to protect
            answer = dice.choice(FAULTS) if dice.random() < self.share else "ok"
            stored = answer in {"ok", "slow"} or (answer == "reset" and dice.random() < 0.5)
            send = Send(request_id, digest, answer, stored, authorization)
            self.sends.append(send)
            if stored:
                self.bodies[digest] = body
            self.under_way[port] = request_id
        usual_s = self.pauses_s.get(request_id) or dice.uniform(*self.usual_s)
        return send, dice.uniform(*SLOW_S) if answer == "slow" else usual_s

    def answered(self, port: int) -> None:
        with self._lock:
            self.under_way.pop(port, None)

    def times_sent(self) -> Counter[str]:
        """By request id."""
        with self._lock:
            return Counter(send.request_id for send in self.sends)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    receiver: LeanReceiver

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        body = self.rfile.read(length)
        if len(body) < length:  # the sender was killed while it wrote
            self.close_connection = True
            return
        port = self.client_address[1]
        send, pause_s = self.receiver.arrive(port, body, self.headers.get("authorization", ""))
        try:
            time.sleep(pause_s)
            self._answer(send)
        finally:
            self.receiver.answered(port)

    def _answer(self, send: Send) -> None:
        with suppress(OSError):  # the sender was killed
            if send.answer == "reset":
                # No lingering: closing sends RST instead of FIN.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
            else:
                self.connection.sendall(whole(int(send.answer) if send.answer.isdigit() else 200, b""))

    def handle(self) -> None:
        with suppress(OSError):
            super().handle()

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def shutdown_request(self, request: Any) -> None:
        # The base class says goodbye first, which would be FIN instead of RST.
        self.close_request(request)


@contextmanager
def lean_receiver(
    seed: int = 0,
    share: float = 0.0,
    usual_s: tuple[float, float] = (0.0, 0.0),
    kind: type[LeanReceiver] = LeanReceiver,
) -> Iterator[LeanReceiver]:
    """In a thread of this process."""
    receiver = kind(seed, share, usual_s)
    with _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"receiver": receiver})) as server:
        receiver.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="lean receiver")
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join(20)


# --- in a process of its own -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LeanProcess:
    """What a receiver in a process of its own is asked."""

    asked: AskedProcess

    @property
    def url(self) -> str:
        return self.asked.url

    def under_way(self) -> dict[int, str]:
        """Request ids by the sender's port."""
        return {int(port): request_id for port, request_id in self.asked.ask("under_way").items()}

    def everything(self, folder: Path) -> tuple[list[Send], dict[str, bytes]]:
        """All sends in order, and the stored bodies by digest; `folder` is where they are handed over."""
        path = folder / "received.json"
        self.asked.ask(f"everything {path}")
        told = json.loads(path.read_text("utf-8"))
        return [Send(**send) for send in told["sends"]], {
            digest: body.encode() for digest, body in told["bodies"].items()
        }


@contextmanager
def lean_process(seed: int, share: float, usual_s: tuple[float, float]) -> Iterator[LeanProcess]:
    arguments = [str(value) for value in (seed, share, *usual_s)]
    with asked_process("tests.support.lean_receiver", *arguments) as asked:
        yield LeanProcess(asked)


def _serve(seed: int, share: float, usual_s: tuple[float, float]) -> None:
    """Until stdin ends: whoever started it is gone."""
    with lean_receiver(seed, share, usual_s) as receiver:
        print(receiver.url, flush=True)  # noqa: T201 - this is how it is found
        for line in sys.stdin:
            question, _, argument = line.strip().partition(" ")
            with receiver._lock:
                if question == "everything":
                    bodies = {digest: body.decode() for digest, body in receiver.bodies.items()}
                    told = {"sends": [asdict(send) for send in receiver.sends], "bodies": bodies}
                    Path(argument).write_text(json.dumps(told), "utf-8")
                    answer: Any = "done"
                else:
                    answer = receiver.under_way
            print(json.dumps(answer), flush=True)  # noqa: T201 - the answer


if __name__ == "__main__":
    _serve(int(sys.argv[1]), float(sys.argv[2]), (float(sys.argv[3]), float(sys.argv[4])))
