"""Phoenix and MLflow as they are: installed from PyPI into environments of their own, with SQLite, on loopback.

    with phoenix(tmp_path) as receiver:
        receiver.client().post(receiver.route, body, ...)
        receiver.kill(); receiver.start()

The environments are kept beside the OpenCodes that other tests install.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.exporters.encoder import Record
from app.exporters.otlp.client import Client
from app.exporters.otlp.traits import Preset, traits
from app.exporters.traits import Traits
from tests.support.checkout import ROOT
from tests.support.opencode import unavailable
from tests.support.waiting import wait_until

VERSIONS = {"arize-phoenix": "20.26.1", "mlflow": "3.17.2"}
INSTALL_S_MAX = 1200
START_S_MAX = 300.0


def environment(package: str) -> Path:
    """The folder of the programs of a package's environment, made unless it is there. Skips where that cannot be."""
    cache = Path(os.environ.get("OPENCODE_HELICONE_TEST_CACHE") or ROOT / ".cache" / "opencode").absolute()
    folder = cache / "receivers" / f"{package}-{VERSIONS[package]}-python{sys.version_info[0]}.{sys.version_info[1]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{package}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "installed").exists():
            _run(sys.executable, "-m", "venv", "--clear", str(folder))
            pip = (str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
            _run(*pip, f"{package}=={VERSIONS[package]}")
            (folder / "installed").touch()
    return folder / "bin"


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S_MAX, check=False)
    except subprocess.TimeoutExpired:
        unavailable(f"{command[1:4]} took more than {INSTALL_S_MAX} s")
    if done.returncode != 0:
        unavailable(f"{command[1:4]} failed: {done.stderr.strip()[-500:]}")


@dataclass(slots=True)
class Receiver:
    """A receiver that runs, or did until it was killed."""

    preset: Preset
    project: str
    port: int
    command: list[str]
    environ: Mapping[str, str]
    database: Path
    log: Path
    health: str
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def traits(self) -> Traits:
        return traits(self.preset, self.project)

    @property
    def route(self) -> str:
        return self.traits.routes(self.url)[0]

    def client(self) -> Client:
        return Client({}, preset=self.preset, project=self.project)

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=dict(self.environ), stdout=log, stderr=log, start_new_session=True
            )
        wait_until(self._is_up, START_S_MAX, 0.1)

    def _is_up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        try:
            return self.get(self.health)[0] == 200
        except OSError:
            return False

    def kill(self) -> None:
        """With all of its processes, by the signal that nobody can hear."""
        if self.process is not None:
            with closing_process(self.process):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process = None

    def get(self, path: str) -> tuple[int, bytes]:
        return self._asked(urllib.request.Request(self.url + path))

    def json(self, path: str, told: Any = None) -> Any:
        data = None if told is None else json.dumps(told).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"})
        status, body = self._asked(request)
        assert status == 200, body[:500]
        return json.loads(body)

    def _asked(self, request: urllib.request.Request) -> tuple[int, bytes]:
        try:
            with _direct.open(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def send(self, *records: Record) -> None:
        with closing(self.client()) as client:
            for record in records:
                outcome = client.post(self.route, record.body, record.request_id, 0)
                assert (outcome.kind, outcome.remark) == ("accepted", ""), outcome.reason

    def delete(self, *records: Record) -> None:
        url = self.traits.deletion_url(self.url)
        assert url is not None
        with closing(self.client()) as client:
            outcome = client.delete(url, [uuid.UUID(record.request_id) for record in records], 0)
        assert outcome.kind == "accepted", outcome.reason

    def await_stored(self, *records: Record) -> None:
        names = {record.request_id for record in records}
        wait_until(lambda: self.stored(*names) == names, 60)

    def stored(self, *request_ids: str) -> set[str]:
        """Which of these are there, as the program itself finds out."""
        url = self.traits.read_back("on", self.url, "", None).url
        assert url is not None
        with closing(self.client()) as client:
            found = client.stored(url, start_ms=0, request_ids=[uuid.UUID(one) for one in request_ids])
        return {str(one) for one in found}

    def holds(self, word: str) -> bool:
        """Whether the word is in any row of its database: searched in a copy that has nothing but the rows."""
        copy = self.database.with_name(f"{uuid.uuid4().hex}.copy")
        with closing(sqlite3.connect(self.database, timeout=60)) as db:
            db.execute("vacuum into ?", (str(copy),))
        try:
            return word.encode() in copy.read_bytes()
        finally:
            copy.unlink()

    def file_holds(self, word: str) -> bool:
        """Whether the word is anywhere in its files, which keep what was deleted until the room is needed."""
        return any(word.encode() in path.read_bytes() for path in self.database.parent.glob(f"{self.database.name}*"))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Its database is written to by somebody else all the time."""
        with closing(sqlite3.connect(self.database, timeout=60, isolation_level=None)) as db:
            db.execute("begin exclusive")
            yield
            db.execute("rollback")


@contextmanager
def closing_process(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.wait(60)


_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port: int = listener.getsockname()[1]
        return port


def _environ(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "LANG", "TMPDIR"}}
    return {**kept, "HOME": str(home), "DO_NOT_TRACK": "true", **more}


@contextmanager
def phoenix(home: Path, project: str = "opencode tests") -> Iterator[Receiver]:
    programs = environment("arize-phoenix")
    port = _free_port()
    home.mkdir(parents=True, exist_ok=True)
    variables = {
        "PHOENIX_WORKING_DIR": str(home),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(_free_port()),
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }
    receiver = Receiver(
        preset="phoenix",
        project=project,
        port=port,
        command=[str(programs / "phoenix"), "serve"],
        environ=_environ(home, **variables),
        database=home / "phoenix.db",
        log=home / "log",
        health="/v1/projects",
    )
    with _running(receiver):
        yield receiver


@contextmanager
def mlflow(home: Path) -> Iterator[Receiver]:
    programs = environment("mlflow")
    port = _free_port()
    home.mkdir(parents=True, exist_ok=True)
    database = home / "mlflow.db"
    command = [str(programs / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{database}", "--default-artifact-root", str(home / "artifacts")]
    environ = _environ(home, MLFLOW_DISABLE_TELEMETRY="true")
    receiver = Receiver("mlflow", "0", port, command, environ, database, home / "log", "/health")
    with _running(receiver):
        yield receiver


@contextmanager
def _running(receiver: Receiver) -> Iterator[None]:
    try:
        receiver.start()
        yield
    finally:
        receiver.kill()
