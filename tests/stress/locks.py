"""A ledger that somebody else locks most of the time: a real worker, a real receiver, real time.

    python -m tests.stress.locks   18 jobs, the write lock held 6.5 s of every 8 s, every answer a 200 (about a minute)

Everything must be delivered, no job charged with a worker's death, and nothing posted twice.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from app.backfill.import_files import import_files
from app.settings.lookup import Sources
from app.sources.opencode.export_files import File
from tests.support.processes import Station, worker
from tests.support.recorded import export_files, exported
from tests.support.servers import receiving
from tests.support.waiting import wait_until

HELD_S, FREE_S = 6.5, 1.5
JOBS = 18
POST_MS = 300
"""How long each answer takes: that of a server on the net."""
TIMEOUT_S = 300


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """The ledger's write lock is held again and again by another connection."""
    over = threading.Event()

    def hold() -> None:
        with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as db:
            while not over.is_set():
                db.execute("begin immediate")
                over.wait(HELD_S)
                db.execute("rollback")
                over.wait(FREE_S)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def capture(station: Station) -> int:
    """So many jobs, or a few more: the number."""
    sources = Sources(station.environ, station.home, station.home)
    jobs = 0
    for name in exported():
        jobs += sum(one.new for one in import_files([File(str(path)) for path in export_files(name)], sources))
        if jobs >= JOBS:
            break
    return jobs


def run() -> list[str]:
    """What went wrong."""
    with tempfile.TemporaryDirectory(prefix="locks-") as folder, receiving(Path(folder) / "store.db") as receiver:
        station = Station(Path(folder), receiver.url)
        jobs = capture(station)
        receiver.fault({"delay_ms": POST_MS, "times": 1_000})
        with worker(station), locked(station.spool / "ledger.db"):
            wait_until(lambda: not station.counts().pending, TIMEOUT_S, 0.5)
        with station.ledger() as db:
            states = Counter(row[0] for row in db.execute("select state from job"))
            kills = db.execute("select sum(kills) from job").fetchone()[0]
        twice = [
            request_id for request_id, times in Counter(one.request_id for one in receiver.sends()).items() if times > 1
        ]
        sys.stdout.write(f"{jobs} jobs: {dict(states)}; {kills} kills charged; {len(twice)} records posted twice\n")
        log = [line for line in station.text("worker.log").splitlines() if "locked" in line]
        sys.stdout.write("".join(f"  {line}\n" for line in log))
        checks = {"not delivered": states != {"delivered": jobs}, "kills": bool(kills), "posted twice": bool(twice)}
        return [name for name, is_wrong in checks.items() if is_wrong]


if __name__ == "__main__":
    sys.exit(", ".join(run()) or 0)
