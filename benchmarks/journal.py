"""What each way around SQLite's WAL-reset bug costs, relative to plain WAL.

    python benchmarks/journal.py [seconds] [processes]

Processes insert, claim, acknowledge and complete jobs of two records in one ledger, through the functions that hook and
worker use. Ways: plain WAL with SQLite's own checkpoints (not safe before 3.51.3), WAL with the checkpoints of
`app.database` (one at a time, under the write lock), rollback journal. They take turns, so that a busy machine slows
all.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from app.ledger import claims, versions

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from app.database.connection import Ledger  # noqa: E402
from app.database.open import open_ledger  # noqa: E402
from app.ledger import destinations  # noqa: E402 - from a checkout
from tests.support.ledger_bench import accepted, bodies, version  # noqa: E402

ROUNDS = 3
WAYS = ("plain WAL", "own checkpoints", "rollback journal")
BODY_BYTES = 8_000
WAL_BYTES_MAX = 16 * 1024 * 1024


def opened(spool: Path, way: str) -> Ledger:
    db = open_ledger(spool)
    if way == "plain WAL":
        db.execute("pragma wal_autocheckpoint = 1000")
        db.path = db.path.with_name("none")  # `checkpoint` finds no WAL there
        db.is_current = lambda: True  # type: ignore[method-assign]
    elif way == "rollback journal":
        db.execute("pragma journal_mode = truncate")
    # Without WAL some starve: SQLite's waiting is not fair, and here they all wait for the same file.
    db.execute("pragma busy_timeout = 60000")
    return db


def work(spool: Path, way: str, name: int, seconds: float, found: multiprocessing.Queue[list[float]]) -> None:
    """Send back how long each job took, in seconds."""
    dice = random.Random(name)  # noqa: S311 - bodies, no secrets
    taken_s: list[float] = []
    with closing(opened(spool, way)) as db:
        one = destinations.destination(db, "https://example.invalid", "fingerprint", 1)
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            made = version(f"msg_{len(taken_s)}", session=f"ses_{name}")
            records = bodies(f"{name} {len(taken_s)}", 2, dice.randbytes(BODY_BYTES // 2).hex())
            start_s = time.perf_counter()
            versions.insert(db, one.id, made, records, now_ms=1)
            claimed = claims.claim(db, one.id, made.key, worker=str(os.getpid()), now_ms=1, lease_ms=60_000)
            assert claimed is not None
            for body in claims.unacknowledged(db, claimed):
                claims.acknowledge(db, claimed, [accepted(db, claimed, body, 1)], now_ms=1, lease_ms=60_000)
            claims.complete(db, claimed, 1)
            taken_s.append(time.perf_counter() - start_s)
    found.put(taken_s)


def measure(way: str, seconds: float, processes: int) -> tuple[list[float], int]:
    """(seconds of each job, most bytes that the WAL had)."""
    with tempfile.TemporaryDirectory(prefix="opencode-helicone-journal-") as name:
        spool = Path(name) / "spool"
        with closing(opened(spool, way)):
            pass
        found: multiprocessing.Queue[list[float]] = multiprocessing.Queue()
        workers = [
            multiprocessing.Process(target=work, args=(spool, way, number, seconds, found))
            for number in range(processes)
        ]
        for worker in workers:
            worker.start()
        wal_bytes = 0
        taken_s: list[float] = []
        for _ in workers:
            while found.empty():
                assert all(worker.exitcode in {None, 0} for worker in workers)
                wal = spool / "ledger.db-wal"
                wal_bytes = max(wal_bytes, wal.stat().st_size if wal.exists() else 0)
                time.sleep(0.01)
            taken_s += found.get(timeout=60)
        for worker in workers:
            worker.join(60)
            assert worker.exitcode == 0
        with closing(sqlite3.connect(spool / "ledger.db")) as db:
            assert db.execute("pragma integrity_check").fetchone()[0] == "ok"
    return sorted(taken_s), wal_bytes


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    processes = int(sys.argv[2]) if len(sys.argv) > 2 else 4
    print(f"SQLite {sqlite3.sqlite_version}, {processes} processes, {ROUNDS} rounds of {seconds:g} s for each way")
    found: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
    wal_bytes = dict.fromkeys(WAYS, 0)
    for _ in range(ROUNDS):
        for way in WAYS:
            taken_s, most = measure(way, seconds, processes)
            wal_bytes[way] = max(wal_bytes[way], most)
            found[way].append((len(taken_s) / seconds, taken_s[len(taken_s) // 2], taken_s[len(taken_s) * 99 // 100]))
    for way in WAYS:
        ratios = [
            statistics.median(
                mine[which] / plain[which] for mine, plain in zip(found[way], found[WAYS[0]], strict=True)
            )
            for which in range(3)
        ]
        jobs, median_s, p99_s = (statistics.median(one[which] for one in found[way]) for which in range(3))
        print(
            f"{way}: {jobs:.0f} jobs/s (x{ratios[0]:.2f}), median {median_s * 1000:.1f} ms (x{ratios[1]:.2f}),"
            f" p99 {p99_s * 1000:.0f} ms (x{ratios[2]:.2f}), WAL {wal_bytes[way] / 1e6:.1f} MB at most"
        )
    sys.exit(0 if wal_bytes["own checkpoints"] < WAL_BYTES_MAX else 1)


if __name__ == "__main__":
    main()
