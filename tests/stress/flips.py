"""Random faults in the files of a spool, and what the real code makes of them.

    python -m tests.stress.flips [faults] [seed]

Each fault is one bit that flips, or ten bytes that go, anywhere in `ledger.db`, its WAL or `queue.db`, in a spool whose
processes were killed. Then a ledger is opened, inspected, delivered from and shown, as hook, worker and `status` do it.
No exception may escape, and every job of before is delivered, or dead with a reason, or counted as lost by `status`.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from app.database.connection import Ledger
from app.database.open import inspect, open_ledger, recover_after
from app.database.schema import SchemaError
from app.delivery.backoff import RetryPolicy
from app.delivery.deliver import DeliveryContext, deliver
from app.exporters.outcome import Outcome
from app.ledger import counts, destinations, maintenance, versions
from app.operations.status import Status, read_status
from app.privacy.policy import Post
from app.queue import Queue
from app.settings.lookup import unattended
from tests.support.ledger_bench import bodies, version

NOW_MS = 1_800_000_000_000
SESSIONS = 9
TURNS = 10
TEXT_BYTES = 1_500
CUT_BYTES = 10
ROUNDS_MAX = 20
"""Of a minute each: no retry waits longer than some of these."""
HEALED_MAX = 5
FINAL = {"delivered", "dead", "superseded", "dropped"}


@dataclass(frozen=True, slots=True)
class Fault:
    """One change of one file."""

    file: str
    kind: str
    offset: int
    bit: int

    def apply(self, spool: Path) -> None:
        path = spool / self.file
        data = bytearray(path.read_bytes())
        if self.kind == "flip":
            data[self.offset] ^= 1 << self.bit
        else:
            del data[self.offset : self.offset + CUT_BYTES]
        path.write_bytes(data)


def fault(dice: random.Random, spool: Path) -> Fault:
    """Every fourth lies in the first page, where the most depends on each byte."""
    file = dice.choices(("ledger.db", "ledger.db-wal", "queue.db"), (5, 3, 1))[0]
    size = (spool / file).stat().st_size
    end = min(size, 4096) if dice.random() < 0.25 else size
    return Fault(file, dice.choice(("flip", "cut")), dice.randrange(end), dice.randrange(8))


def populate(spool: Path, scratch: Path, sessions: int = SESSIONS) -> set[str]:
    """A spool as killed processes leave it: half in the database, half in the WAL. The keys of its jobs."""
    keys = set()
    text = random.Random(1)  # noqa: S311 - bodies that do not compress to nothing
    for half in (0, 1):
        db = open_ledger(scratch)
        db.execute("pragma synchronous = off")
        one = destinations.destination(db, "https://example.invalid", "fingerprint", NOW_MS)
        context = _courier(one.id, lambda: NOW_MS)
        for session in range(sessions):
            for turn in range(half * TURNS // 2, (half + 1) * TURNS // 2):
                made = version(f"msg_{turn}", last_event_ms=turn, session=f"ses_{session}")
                keys.add(made.key)
                records = bodies(f"{session} {turn}", 2, text.randbytes(TEXT_BYTES).hex())
                versions.insert(db, one.id, made, records, now_ms=NOW_MS)
                if session % 3 == 0:
                    deliver(db, made.key, context)
        if half == 0:
            db.close()
    queue = Queue(scratch, 1)
    for key in sorted(keys)[:5]:
        queue.wake(key)
    spool.mkdir(mode=0o700)
    for path in scratch.iterdir():
        if not path.name.endswith("-shm"):
            shutil.copy(path, spool / path.name)
    queue.close()
    db.close()
    return keys


def _courier(destination_id: int, clock: Callable[[], int]) -> DeliveryContext:
    return DeliveryContext(
        destination_id=destination_id,
        worker="flips",
        policy=RetryPolicy(max_retries=5, base_ms=1_000, cap_ms=60_000),
        permit=lambda _: Post(),
        post=lambda _claim, _body: Outcome("accepted", "200", 200),
        clock=clock,
        dice=lambda: 0.5,
        stopping=lambda: False,
    )


class Machine:
    """What the processes of one spool do after the fault, in one thread."""

    def __init__(self, spool: Path) -> None:
        self.spool = spool
        self.now_ms = NOW_MS
        self.healed = 0

    def _open(self) -> Ledger:
        db = open_ledger(self.spool)
        db.execute("pragma synchronous = off")  # nobody cuts the power here
        return db

    def run(self) -> Status:
        db = self._open()
        queue = Queue(self.spool, 1)
        try:
            inspected = False
            while True:
                try:
                    if not inspected:
                        inspect(db)
                        inspected = True
                    self._deliver(db, queue)
                    break
                except sqlite3.Error as error:
                    self.healed += 1
                    if self.healed > HEALED_MAX or not recover_after(db, error):
                        raise
                    db.close()
                    db = self._open()
        finally:
            queue.close()
            db.close()
        settings = unattended({"OPENCODE_HELICONE_SPOOL_DIRECTORY": str(self.spool)}).load()
        return read_status(settings, self.now_ms)

    def _deliver(self, db: Ledger, queue: Queue) -> None:
        """As the poller does: wake what is due, until nothing is; time passes when there is something to wait for."""
        for _ in range(ROUNDS_MAX):
            queue.mend()
            maintenance.recover(db, self.now_ms, maintenance.leasing_workers(db))
            maintenance.reset_future_times(db, self.now_ms)
            keys: list[str] = []
            waits = []
            for one in destinations.destinations(db):
                found = maintenance.to_wake(db, one.id, self.now_ms, 50)
                keys += found
                waits.append(maintenance.next_due_ms(db, one.id, self.now_ms))
                for key in found[:1]:
                    queue.wake(key)
                for key in found:
                    deliver(db, key, _courier(one.id, lambda: self.now_ms))
            if not keys:
                if not any(counts.is_pending(db, one.id) for one in destinations.destinations(db)):
                    return
                self.now_ms += 60_000


@dataclass(frozen=True, slots=True)
class Found:
    """What is left of the jobs after a fault."""

    missing: int
    counted: int
    """As lost, by `status`."""
    stuck: int
    """Pending still."""
    is_noticed: bool
    """`status` says that something was damaged."""


def look(spool: Path, keys: set[str], status: Status) -> Found:
    with closing(open_ledger(spool)) as db:
        rows = db.execute("select key, state, error from job").fetchall()
    there = {row["key"]: row["state"] for row in rows}
    assert set(there.values()) <= FINAL | {"pending"}
    assert all(row["error"] for row in rows if row["state"] == "dead")
    damage = [one for one in status.incidents if one.what.startswith("ledger: ")]
    return Found(
        missing=len(keys - set(there)),
        counted=sum(one.count for one in damage if "set aside" not in one.what),
        stuck=sum(state == "pending" for state in there.values()),
        is_noticed=bool(damage),
    )


def play(template: Path, keys: set[str], folder: Path, one: Fault) -> Found | str:
    """What became of one fault; a string names what must not happen."""
    spool = folder / "spool"
    shutil.rmtree(spool, ignore_errors=True)
    shutil.copytree(template, spool)
    one.apply(spool)
    try:
        status = Machine(spool).run()
        found = look(spool, keys, status)
    except SchemaError:
        return Found(0, 0, 0, is_noticed=True)  # taken for a newer one: refused with one line, and nothing changed
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        return f"{type(error).__name__}: {error}"
    if found.missing > found.counted:
        return f"{found.missing} jobs missing, {found.counted} counted"
    if found.stuck:
        return f"{found.stuck} jobs wait for ever"
    return found


def main() -> None:
    faults = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)  # noqa: S311
    print(f"{faults} faults, seed {seed}, SQLite {sqlite3.sqlite_version}")
    dice = random.Random(seed)  # noqa: S311
    began_s = time.monotonic()
    failed, missing, noticed, dead_slow = [], 0, 0, 0.0
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a folder of its own in it
    with tempfile.TemporaryDirectory(prefix="opencode-helicone-flips-", dir=memory) as name:
        folder = Path(name)
        keys = populate(folder / "template", folder / "scratch")
        for _ in range(faults):
            one = fault(dice, folder / "template")
            start_s = time.monotonic()
            found = play(folder / "template", keys, folder, one)
            dead_slow = max(dead_slow, time.monotonic() - start_s)
            if isinstance(found, str):
                failed.append(one)
                print(f"  {one}: {found}", flush=True)
            else:
                missing += found.missing
                noticed += found.is_noticed
    print(
        f"{len(keys)} jobs each; {noticed} faults shown by status, {missing} jobs lost and counted in all,"
        f" {len(failed)} faults not survived; {time.monotonic() - began_s:.0f} s, the slowest {dead_slow:.1f} s"
    )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
