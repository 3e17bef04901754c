"""Our processes as they really run: a hook, `huey_consumer` as in the Procfile, an automatic worker, commands."""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.database.open import open_ledger
from app.ledger import counts as ledger_counts
from app.ledger import destinations
from app.ledger.counts import Counts
from app.runtime.liveness import present
from app.sources.opencode.store import store_file
from tests.support.checkout import ROOT
from tests.support.servers import api_key
from tests.support.stores import WrittenStore
from tests.support.waiting import wait_until

PROJECT = "/home/dev/project"
"""The folder that the recordings come from."""
WAIT_S = 300.0
"""As in `waiting`: only a test that fails waits for it."""


@dataclass(frozen=True, slots=True)
class Station:
    """One person's machine: a home, a spool, a key and an endpoint. Every process of a test gets its environment."""

    home: Path
    endpoint: str
    key: str = field(default_factory=api_key, repr=False)
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def spool(self) -> Path:
        return self.home / "spool"

    @property
    def environ(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name in {"PATH", "LANG", "TMPDIR"}}
        own = {
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "XDG_DATA_HOME": str(self.home / "data"),
            "OPENCODE_HELICONE_SPOOL_DIRECTORY": str(self.spool),
            "OPENCODE_HELICONE_WORKER": "external",
            # Reading back is a matter of its own tests: others count requests and held bodies.
            "OPENCODE_HELICONE_CONFIRM": "off",
            "HELICONE_ENDPOINT": self.endpoint,
            "HELICONE_API_KEY": self.key,
        }
        return {name: value for name, value in {**kept, **own, **self.variables}.items() if value}

    @contextmanager
    def ledger(self) -> Iterator[sqlite3.Connection]:
        with closing(open_ledger(self.spool)) as db:
            yield db

    def counts(self) -> Counts:
        with self.ledger() as db:
            return ledger_counts.counts(db)

    def delivered(self, jobs: int) -> bool:
        """Whether so many jobs are delivered and nothing is left to do."""
        counts = self.counts()
        return (counts.delivered, counts.pending) == (jobs, 0)

    def text(self, log: str) -> str:
        path = self.spool / "logs" / log
        return path.read_text("utf-8") if path.exists() else ""

    def run(self, *arguments: str, stdin: str = "", timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """A command that a person types."""
        return subprocess.run(
            [sys.executable, "-m", "app", *arguments],
            env=self.environ,
            cwd=self.home,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


def repository(folder: Path) -> None:
    """Make the folder one that Git, and so OpenCode, takes for the root of a repository."""
    for name in ("objects", "refs"):
        (folder / ".git" / name).mkdir(parents=True)
    (folder / ".git" / "HEAD").touch()


@dataclass(slots=True)
class HookProcess:
    """A live hook, and the OpenCode that it belongs to: what that writes to its store, and says and hears as plugin."""

    process: subprocess.Popen[bytes]
    store_path: Path
    said: int = 0
    """Number of the newest line that asks to be acknowledged."""
    acknowledged: int = 0
    _store: WrittenStore | None = None
    _heard: bytes = b""

    def notice(self, session: str, why: str = "idle", **message: Any) -> int:
        """Say that something of the session is new in the store; the notice's number."""
        self.said += 1
        self.say(**{"v": 2, "n": self.said, "type": "notice", "session": session, "why": why, **message})
        return self.said

    def show(self, snapshot: dict[str, Any], **message: Any) -> None:
        """OpenCode writes what the snapshot shows to its store, and the plugin gives notice of it.

        A `directory` is where OpenCode was started: it is that of the sessions as well.
        """
        if "directory" in message:
            there = {"directory": message["directory"]}
            moved = [{**one, "info": {**one["info"], **there}} for one in snapshot["sessions"]]
            snapshot = {**snapshot, "sessions": moved}
        self.notice(self.store.put(snapshot), **message)

    def delete(self, session: str, **message: Any) -> None:
        """OpenCode deletes the session."""
        self.store.delete(session)
        self.notice(session, "deleted", **message)

    @property
    def store(self) -> WrittenStore:
        """Open, and made if need be, from the first time on until OpenCode ends."""
        self._store = self._store or WrittenStore(self.store_path)
        return self._store

    def wait_for_ack(self, number: int | None = None) -> None:
        """Until the hook has acknowledged this line (the newest one). Fails when it ends without."""
        number = self.said if number is None else number
        assert self.process.stdout is not None
        pipe = self.process.stdout.fileno()
        while self.acknowledged < number:
            ready, _, _ = select.select([pipe], [], [], WAIT_S)
            read = os.read(pipe, 1 << 16) if ready else b""
            assert read, f"line {number} was not acknowledged, but {self.acknowledged} was"
            *lines, self._heard = (self._heard + read).split(b"\n")
            for line in lines:
                self.acknowledged = json.loads(line)["ack"]

    def say(self, type: str, **message: Any) -> None:  # noqa: A002 - the protocol's word
        self.raw(json.dumps({"v": 1, "type": type, "directory": PROJECT, "options": {}, **message}).encode())

    def raw(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def end(self) -> int:
        """OpenCode ends: EOF. The exit code."""
        assert self.process.stdin is not None
        self.close_store()
        self.process.stdin.close()
        return self.process.wait(WAIT_S)

    def close_store(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None


@contextmanager
def hook(
    station: Station, python: str = sys.executable, arguments: Sequence[str] = (), **options: Any
) -> Iterator[HookProcess]:
    process = subprocess.Popen(
        [python, "-I", "-m", "app", "hook", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=station.environ,
        **options,
    )
    running = HookProcess(process, store_file(station.environ))
    try:
        yield running
    finally:
        running.close_store()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()
        process.kill()
        process.wait()


def procfile_command() -> list[str]:
    """The worker's command line, as a process manager would run it."""
    _, command = (ROOT / "Procfile").read_text("utf-8").strip().split(":", 1)
    program, *arguments = shlex.split(command)
    return [str(Path(sys.executable).parent / program), *arguments]


def start_consumer(station: Station, threads: int, output: Path) -> subprocess.Popen[bytes]:
    """As in the Procfile, but for the number of threads; what it says comes to the end of this file."""
    command = procfile_command()
    command[command.index("-w") + 1] = str(threads)
    with output.open("ab") as file:
        return subprocess.Popen(command, env=station.environ, cwd=station.home, stdout=file, stderr=file)


@contextmanager
def worker(station: Station, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A real `huey_consumer`, as in the Procfile; returns when it is ready to deliver."""
    with (station.home / "consumer.log").open("ab") as output:
        process = subprocess.Popen(
            procfile_command(), env=station.environ, cwd=station.home, stdout=output, stderr=output, **options
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(300)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def catches(process: subprocess.Popen[bytes], signum: signal.Signals) -> bool:
    """Whether it has a handler for the signal by now; before that the signal just ends it."""
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():  # not Linux: hope
        return True
    (mask,) = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("SigCgt:")]
    return bool(int(mask, 16) >> (signum - 1) & 1)


def let_leases_last(station: Station) -> None:
    """What is leased now stays so for longer than `wait_until` waits: a test that waits for a lease to end, fails.

    (A worker that looks shortens a lease, but only to ten minutes.)
    """
    with station.ledger() as db:
        lengthened = db.execute("update job set lease_until_ms = lease_until_ms + 86400000 where lease_until_ms > 0")
        assert lengthened.rowcount > 0, "nothing was leased"


def end_automatic_workers(station: Station) -> None:
    """Have the workers that a hook started end: they are nobody's children."""
    with station.ledger() as db:
        for one in destinations.destinations(db):
            destinations.want_worker(db, one.id, "none")
    wait_until(lambda: not present(station.spool / "workers"))
