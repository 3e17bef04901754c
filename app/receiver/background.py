"""Runs the receiver beside the command that wants one, and ends it again."""

from __future__ import annotations

import hmac
import http.client
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.receiver.access import ReceiverError, key_file, own_key, page_url, proof
from app.runtime.filesystem import private_directory

PORT = 8686
PORTS = 10
"""So many are tried, from PORT on."""
WEB_PORT = 8687
"""That of `web`, which is left to it."""
HOST = "127.0.0.1"
STOP_S_MAX = 5.0
START_S_MAX = 30.0
ASK_S_MAX = 5.0
LOOK_S = 0.1
ANSWER_BYTES_MAX = 1_000
"""Of whoever listens where the receiver may."""
_PROOF = re.compile(rb"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Running:
    port: int
    key: str
    is_new: bool
    """It was started now, and did not run before."""

    @property
    def url(self) -> str:
        return _url(self.port)

    @property
    def page(self) -> str:
        return page_url(self.url, self.key)


def ensure(store_path: Path, environ: Mapping[str, str]) -> Running:
    """The receiver that keeps this store; started where none runs. It goes on when this process ends.

    Raises ReceiverError and OSError.
    """
    private_directory(store_path.parent)
    key = own_key(store_path)
    for port in range(PORT, PORT + PORTS):
        who = _who(port, key)
        if who == "ours":
            return Running(port, key, is_new=False)
        if who == "nobody" and port != WEB_PORT:
            _start(store_path, port, key, environ)
            return Running(port, key, is_new=True)
    raise ReceiverError(f"ports {PORT} to {PORT + PORTS - 1} are all taken by others: free one of them")


def urls() -> set[str]:
    """Where `ensure` may have started it."""
    return {_url(port) for port in range(PORT, PORT + PORTS)}


def find(store_path: Path, first_port: int = PORT) -> Running | None:
    """The receiver that keeps this store, if one runs, on that port or one that `ensure` takes; nothing is made."""
    if not key_file(store_path).exists():
        return None
    key = own_key(store_path)
    ports = dict.fromkeys((first_port, *range(PORT, PORT + PORTS)))
    return next((Running(port, key, is_new=False) for port in ports if _who(port, key) == "ours"), None)


def who_has(port: int, store_path: Path) -> str:
    """Who listens where the receiver of this store was to, and what to do."""
    key = own_key(store_path)
    match _who(port, key):
        case "ours":
            return f"it runs already, on port {port}; its page: {page_url(_url(port), key)}"
        case "another receiver":
            other = "a receiver with another store, or of another user, has it"
        case _:
            other = "another program has it"
    return f"port {port} is taken: {other}; --port 0 takes a free one"


def stop(store_path: Path) -> bool:
    """End the receivers that keep this store; False where none runs."""
    if not key_file(store_path).exists():
        return False
    key, found = own_key(store_path), False
    for port in range(PORT, PORT + PORTS):
        if _who(port, key) != "ours":
            continue
        if _ask("POST", port, "/_stop", {"authorization": f"Bearer {key}"})[0] == http.HTTPStatus.OK:
            found = True
            # It answers before it ends, and may write until then.
            end_s = time.monotonic() + STOP_S_MAX
            while _who(port, key) == "ours" and time.monotonic() < end_s:
                time.sleep(LOOK_S)
    return found


def _url(port: int) -> str:
    return f"http://{HOST}:{port}"


def _start(store_path: Path, port: int, key: str, environ: Mapping[str, str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-I", "-m", "app", "receiver", "--port", str(port), "--store", str(store_path)],
        cwd=store_path.parent,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    end_s = time.monotonic() + START_S_MAX
    while process.poll() is None and time.monotonic() < end_s:
        if _who(port, key) == "ours":
            process.returncode = 0  # it is nobody's to wait for: it outlives this process
            return
        time.sleep(LOOK_S)
    process.kill()
    process.wait()
    raise ReceiverError(f"the receiver does not start: `opencode-helicone receiver --port {port}` says why")


def _who(port: int, key: str) -> Literal["ours", "another receiver", "another", "nobody"]:
    """Who listens there; nothing secret is sent before whoever it is has shown that it has the key."""
    nonce = secrets.token_hex(16)
    try:
        status, said = _ask("GET", port, f"/_who?nonce={nonce}", {})
    except ConnectionRefusedError:
        return "nobody"
    except (OSError, http.client.HTTPException):
        return "another"
    if status != http.HTTPStatus.OK or _PROOF.fullmatch(said) is None:
        return "another"
    return "ours" if hmac.compare_digest(said, proof(key, nonce, port).encode()) else "another receiver"


def _ask(method: str, port: int, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection(HOST, port, timeout=ASK_S_MAX)) as connection:
        connection.request(method, path, headers=dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.read(ANSWER_BYTES_MAX)
