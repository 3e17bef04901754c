"""How often hook and worker wait for the disk, and how much they write to the ledger's log.

    python -m benchmarks syncs

The real processes, run twice: what more turns or jobs cost more is theirs, and not that of starting. strace counts the
waits; the log is measured by its length, with a connection open that keeps it.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.delivery import RECORDS, ROOT, Load, fill
from benchmarks.table import Row
from tests.support import snapshots
from tests.support.asked_process import asked_process
from tests.support.processes import HookProcess, Station, hook

FEW, MORE = 30, 60
"""After FEW each of the worker's twelve threads has written once, which waits for the disk as well."""
TURN_BYTES = 10_000


@dataclass(frozen=True, slots=True)
class Cost:
    waits: float
    log_bytes: float


def rows(short: bool) -> Iterator[Row]:  # noqa: FBT001 - as of all of the table
    more = FEW + 15 if short else MORE  # of one job more, the worker may wait for the disk once less
    with tempfile.TemporaryDirectory(prefix="opencode-helicone-syncs-") as name:
        of_hook = each(captured, Path(name) / "hook", more)
        of_worker = each(delivered, Path(name) / "worker", more)
    missing = "" if shutil.which("strace") else "not measured: strace is not installed"
    yield Row("waits for the disk of the hook, a turn", "one", [of_hook.waits], 1, note=missing)
    yield Row(
        f"waits for the disk of the worker, a job of {RECORDS} records", "one", [of_worker.waits], 2, note=missing
    )
    yield Row(
        "log bytes of hook and worker, a turn",
        f"the turn's {TURN_BYTES // 1000} kB",
        [(of_hook.log_bytes + of_worker.log_bytes) / TURN_BYTES],
        12,
        note=f"{of_hook.log_bytes / 1000:.0f} and {of_worker.log_bytes / 1000:.0f} kB",
    )


def each(run: Callable[[Path, int], Cost], folder: Path, more: int) -> Cost:
    """What one costs more."""
    few, many = (run(folder / str(number), number) for number in (FEW, more))
    steps = more - FEW
    return Cost((many.waits - few.waits) / steps, (many.log_bytes - few.log_bytes) / steps)


def captured(home: Path, turns: int) -> Cost:
    """A hook that is told of turns, one after the other."""
    home.mkdir(parents=True)
    station = Station(home, "http://127.0.0.1:9")
    with station.ledger(), hook(station, counting(home)) as running:
        for number in range(turns):
            put(running, number)
        log_bytes = log_length(station)
        running.end()
    return Cost(counted(home), log_bytes)


def put(running: HookProcess, number: int) -> None:
    at_ms = time.time_ns() // 1_000_000 - 100
    asks, answers = f"msg_{number:04}a", f"msg_{number:04}b"
    text = " ".join(f"word {at} of turn {number}" for at in range(TURN_BYTES // 18))
    asked = snapshots.user(asks, at_ms, snapshots.text("a question", f"prt_{asks}"))
    said = snapshots.assistant(answers, at_ms + 10, snapshots.text(text, f"prt_{answers}"), parent=asks)
    shown = snapshots.entry(asked, said, id="ses_syncs0000", time={"created": at_ms, "updated": at_ms + 20})
    running.wait_for_ack(running.notice(running.store.put(snapshots.snapshot(shown))))


def delivered(home: Path, jobs: int) -> Cost:
    """A worker that finds so many jobs."""
    home.mkdir(parents=True)
    with asked_process("benchmarks.delivery", "receive", "0") as receiver:
        station = Station(home, receiver.url)
        fill(station, Load(sessions=jobs, jobs=1))
        with station.ledger():
            before = log_length(station)
            arguments = ["-m", "benchmarks.delivery", "ours", receiver.url]
            subprocess.run([counting(home), *arguments], env=station.environ, cwd=ROOT, capture_output=True, check=True)
            return Cost(counted(home), log_length(station) - before)


def log_length(station: Station) -> int:
    return (station.spool / "ledger.db-wal").stat().st_size


def counting(home: Path) -> str:
    """A Python whose waits for the disk are counted, where that can be done."""
    if shutil.which("strace") is None:
        return sys.executable
    script = home / "python"
    traced = f"strace -f -qq -e trace=fdatasync,fsync -o '{home / 'strace'}'"
    script.write_text(f'#!/bin/sh\nexec {traced} {sys.executable} "$@"\n')
    script.chmod(0o700)
    return str(script)


def counted(home: Path) -> float:
    told = home / "strace"
    if not told.exists():
        return math.nan
    lines = told.read_text().splitlines()
    return sum("sync(" in line for line in lines)
