"""An intake as it really runs: in a thread, or as processes that share one listening socket."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.message import Message
from typing import IO

from app.intake.server import create
from app.pages import loopback
from app.settings.intake import LOG_PATH

_PROCESS = """
import socket, sys
from app.intake.server import serve
serve(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
"""


@contextmanager
def intake(database_url: str) -> Iterator[str]:
    """In a thread; its address."""
    with loopback.listening("127.0.0.1", 0) as bound:
        server = loopback.server(create(database_url))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name="intake")
        thread.start()
        try:
            yield loopback.address(bound)
        finally:
            server.should_exit = True
            thread.join(20)


def start_intake(
    database_url: str, bound: socket.socket, variables: Mapping[str, str], output: IO[bytes]
) -> subprocess.Popen[bytes]:
    """One process of any number. What nobody has accepted yet waits in the socket, for whichever comes."""
    return subprocess.Popen(
        [sys.executable, "-c", _PROCESS, database_url, str(bound.fileno())],
        env={"PATH": os.environ["PATH"], **variables},
        pass_fds=[bound.fileno()],
        stdout=output,
        stderr=output,
    )


def envelope(request_id: str, text: str = "hello", session: str = "ses_1", **more: object) -> bytes:
    """A log that Helicone takes."""
    said = {
        "providerRequest": {
            "url": "custom-model-nopath",
            "json": {"model": "m", "messages": [{"role": "user", "content": text}]},
            "meta": {"Helicone-Request-Id": request_id, "Helicone-Session-Id": session},
        },
        "providerResponse": {"json": {"model": "m"}, "status": 200, "headers": {}},
        "timing": {"startTime": {"seconds": 1, "milliseconds": 0}, "endTime": {"seconds": 2, "milliseconds": 0}},
        **more,
    }
    return json.dumps(said).encode()


_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def send(
    url: str, token: str | None, body: bytes, headers: Mapping[str, str] | None = None
) -> tuple[int, Message, bytes]:
    """POST a log to an intake: status, headers, body."""
    return ask(url + LOG_PATH, token, body, headers)


def ask(
    url: str, token: str | None, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, Message, bytes]:
    """GET, or POST where there is a body: status, headers, body."""
    named = {**({} if token is None else {"authorization": f"Bearer {token}"}), **(headers or {})}
    request = urllib.request.Request(url, body, named)
    try:
        with _direct.open(request, timeout=60) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()
