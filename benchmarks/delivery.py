"""Delivery against a bare httpx loop that posts the same bodies to the same receiver.

    python -m benchmarks delivery

Ours is the worker as it runs, with its twelve threads and a full ledger; the bare loop is twelve threads with one
`httpx.Client`. Each is a process of its own, so is the receiver. Time is from the receiver's first request to its last
one; CPU is the process's own, from before the first to after the last. The two take turns, each with a new ledger.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from app.capture.targets import target
from app.database.open import open_ledger
from app.ledger import job, versions
from app.ledger.job import Body
from app.runtime import clock
from app.settings.lookup import unattended
from app.worker import Worker
from benchmarks.table import Row
from tests.support.asked_process import AskedProcess, asked_process
from tests.support.ledger_bench import version
from tests.support.processes import Station

ROOT = Path(__file__).parent.parent
THREADS = 12
RECORDS = 4
"""Of a job: a prompt, two answers and a tool call."""
BODY_BYTES = 3_000
PAIRS = 5
LATENCY_S = 0.2


@dataclass(frozen=True, slots=True)
class Load:
    sessions: int
    jobs: int
    """Of each session."""
    latency_s: float = 0.0
    at_once: int = THREADS
    """Requests of the bare loop."""


FAST = Load(sessions=48, jobs=8)
ALONE = Load(sessions=1, jobs=12, latency_s=LATENCY_S, at_once=1)
MANY = Load(sessions=20, jobs=5, latency_s=LATENCY_S)
SHORT = {FAST: Load(sessions=4, jobs=2), ALONE: Load(1, 1, 0.01, 1), MANY: Load(3, 1, 0.01)}


@dataclass(frozen=True, slots=True)
class Taken:
    per_s: float
    cpu_ms: float
    """Of a record."""


def rows(short: bool) -> Iterator[Row]:  # noqa: FBT001 - as of all of the table
    quick = [pair(SHORT[FAST] if short else FAST) for _ in range(1 if short else PAIRS)]
    yield Row(
        "records a second to a receiver on this machine, 12 threads",
        "a bare httpx loop with the same bodies",
        [ours.per_s / bare.per_s for ours, bare in quick],
        0.5,
        at_least=True,
        note=f"{middle(ours.per_s for ours, _ in quick):.0f} and {middle(bare.per_s for _, bare in quick):.0f}",
    )
    yield Row(
        "processor time of a delivered record",
        "a bare httpx loop with the same bodies",
        [ours.cpu_ms / bare.cpu_ms for ours, bare in quick],
        None,
        note=f"{middle(ours.cpu_ms for ours, _ in quick):.2f} and {middle(bare.cpu_ms for _, bare in quick):.2f} ms",
    )
    yield Row("processor time of a delivered record", "in ms", [ours.cpu_ms for ours, _ in quick], 0.9)
    for load, who, goal in ((ALONE, "one session", 3.0), (MANY, "20 sessions", 0.9)):
        pairs = [pair(SHORT[load] if short else load) for _ in range(1 if short else PAIRS)]
        yield Row(
            f"records a second of {who} at a destination that takes {LATENCY_S * 1_000:.0f} ms",
            f"a bare httpx loop of {load.at_once} thread{'s' if load.at_once > 1 else ''}",
            [ours.per_s / bare.per_s for ours, bare in pairs],
            goal,
            at_least=True,
            note=f"{middle(ours.per_s for ours, _ in pairs):.1f} and {middle(bare.per_s for _, bare in pairs):.1f}"
            " a second",
        )


def middle(values: Iterator[float]) -> float:
    return statistics.median(values)


def pair(load: Load) -> tuple[Taken, Taken]:
    with (
        tempfile.TemporaryDirectory(prefix="opencode-helicone-delivery-") as name,
        asked_process("benchmarks.delivery", "receive", str(load.latency_s)) as receiver,
    ):
        station = Station(Path(name), receiver.url)
        fill(station, load)
        bare = taken(receiver, station, ["bare", str(load.at_once)])
        ours = taken(receiver, station, ["ours"])
        assert station.counts().pending == 0
    return ours, bare


def taken(receiver: AskedProcess, station: Station, arguments: list[str]) -> Taken:
    receiver.ask()
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.delivery", *arguments, receiver.url],
        env=station.environ,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    requests, seconds = receiver.ask()
    return Taken((requests - 1) / seconds, json.loads(told.stdout)["cpu_s"] * 1_000 / requests)


def fill(station: Station, load: Load) -> None:
    settings = unattended(station.environ).load()
    with station.ledger() as db:
        ours = target(db, settings, clock.now_ms())
        db.execute("pragma synchronous = off")
        for number in range(load.jobs):
            for session in range(load.sessions):
                made = version(f"t{number}", session=f"ses_{session}")
                versions.insert(db, ours.id, made, bodies(f"{session} {number}"), now_ms=1)


def bodies(name: str) -> Iterator[Body]:
    for number in range(RECORDS):
        request_id = uuid.uuid5(uuid.NAMESPACE_OID, f"{name} {number}")
        words = " ".join(f"word {name} {number} {at}" for at in range(BODY_BYTES // 20))
        meta = {"Helicone-Request-Id": str(request_id), "Helicone-Session-Id": name}
        told = {"providerRequest": {"json": {"messages": [words]}, "meta": meta}, "providerResponse": {"status": 200}}
        yield Body(request_id, json.dumps(told).encode())


# --- what is measured, each in a process of its own


def ours(_: str) -> None:
    worker = Worker(unattended(dict(os.environ)))
    began_s = time.process_time()
    count = "select count(*) from job where state = 'pending'"
    worker.run_until(lambda: not worker.db.execute(count).fetchone()[0])
    tell(began_s)


def bare(at_once: str, url: str) -> None:
    station = unattended(dict(os.environ)).load()
    db = open_ledger(station.spool_directory)
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    for row in db.execute("select id, key from job").fetchall():
        for body in job.bodies(db, row["id"], row["key"]):
            waiting.put(body.body)
    headers = {"Authorization": f"Bearer {station.api_key}", "Content-Type": "application/json"}
    began_s = time.process_time()
    with httpx.Client(trust_env=False) as client:

        def work() -> None:
            while True:
                try:
                    body = waiting.get_nowait()
                except queue.Empty:
                    return
                assert client.post(url, content=body, headers=headers).status_code == 200

        threads = [threading.Thread(target=work) for _ in range(int(at_once))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    tell(began_s)


def tell(began_s: float) -> None:
    print(json.dumps({"cpu_s": time.process_time() - began_s}))


# --- the receiver, which does as little as it can


def receive(latency_s: str) -> None:
    times_s: list[float] = []
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    threading.Thread(target=accept, args=(listener, float(latency_s), times_s), daemon=True).start()
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/v1/trace/custom/log", flush=True)
    for _ in sys.stdin:
        told = [len(times_s), times_s[-1] - times_s[0] if times_s else 0]
        times_s.clear()
        print(json.dumps(told), flush=True)


def accept(listener: socket.socket, latency_s: float, times_s: list[float]) -> None:
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=answer, args=(connection, latency_s, times_s), daemon=True).start()


def answer(connection: socket.socket, latency_s: float, times_s: list[float]) -> None:
    with connection:
        while True:
            held = b""
            while b"\r\n\r\n" not in held:
                read = connection.recv(65536)
                if not read:
                    return
                held += read
            head, _, rest = held.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            left = length - len(rest)
            while left:
                left -= len(connection.recv(min(left, 65536)))
            times_s.append(time.monotonic())
            if latency_s:
                time.sleep(latency_s)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


if __name__ == "__main__":
    roles: dict[str, Any] = {"ours": ours, "bare": bare, "receive": receive}
    roles[sys.argv[1]](*sys.argv[2:])
