"""History: import against queues that take as many messages of the size, and looks through OpenCode's store.

Looks are at many small sessions, and at one with an attachment of 60 MB. Each import is of new sessions, and each queue
is a file in the same folder, with the durability it has by default. The queues but Huey are installed into a scratch
folder for the run; where that fails, their rows say so.
"""

from __future__ import annotations

import base64
import json
import math
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib import import_module
from pathlib import Path

from huey import SqliteHuey

from app.backfill.backfill import Backfill, Choice, Plan, Queued, opened
from app.backfill.import_files import import_files
from app.capture.folders import Folders
from app.capture.targets import target
from app.database.connection import Ledger, transaction
from app.ledger.history import exported_sessions
from app.privacy.redact import Redaction, redact_turn
from app.recall.audit import audit
from app.recall.recall import Recall
from app.runtime import clock
from app.settings.lookup import Sources
from app.sources.opencode.export_files import File, parsed
from app.sources.opencode.store import Store, store_file
from app.verify.verify import Choice as Looked
from app.verify.verify import verify
from benchmarks.table import Row
from tests.support import snapshots
from tests.support.stores import WrittenStore

TURNS = 400
"""Of a session that is imported."""
OUTPUT_BYTES = 2_000
GOAL = 3.0
LOOKS = {"backfill --dry-run": 7.0, "verify": 7.5, "audit": 27.0, "recall --pattern": 15.0}
"""Goals: a quarter of what they took at first (27.5, 30, 107 and 60 times the floor)."""
ATTACHMENT_BYTES = 60 << 20
PEERS = {"litequeue": None, "persistqueue": GOAL}
PACKAGES = {"litequeue": "litequeue", "persistqueue": "persist-queue"}
RAW = "raw sqlite3 and json.loads of the same rows"
Put = Callable[[bytes], object]


def rows(short: bool) -> Iterator[Row]:  # noqa: FBT001 - as benchmarks/table.py says
    with tempfile.TemporaryDirectory() as folder:
        yield from _imports(Path(folder), *((1, 5) if short else (5, TURNS)))
    with tempfile.TemporaryDirectory() as folder:
        yield from _looks(Path(folder), 3 if short else 300, 1 if short else 3)
    with tempfile.TemporaryDirectory() as folder:
        yield from _attachment(Path(folder), 1 << 20 if short else ATTACHMENT_BYTES)


def _sources(home: Path) -> Sources:
    environ = {
        "HOME": str(home),
        "OPENCODE_HELICONE_SPOOL_DIRECTORY": str(home / "spool"),
        "OPENCODE_HELICONE_MAX_SPOOL_SIZE": str(1 << 32),
    }
    return Sources(environ, home, home / "config")


def _session(number: int, turns: int) -> snapshots.Fields:
    began_ms = clock.now_ms() - 3_600_000 - number * 60_000
    output = ("what a tool has written, line by line\n" * (OUTPUT_BYTES // 38 + 1))[:OUTPUT_BYTES]
    made: list[snapshots.Fields] = []
    for turn in range(turns):
        name, at_ms = f"{number:06d}{turn:04d}", began_ms + turn * 1_000
        call = snapshots.tool(f"prt_{name}b", output=output, time={"start": at_ms + 20, "end": at_ms + 30})
        said = snapshots.text(f"answer {name}", f"prt_{name}c")
        made += [
            snapshots.user(f"msg_{name}a", at_ms, snapshots.text(f"prompt {name}", f"prt_{name}a")),
            snapshots.assistant(f"msg_{name}b", at_ms + 10, call, said, parent=f"msg_{name}a"),
        ]
    times = {"created": began_ms, "updated": began_ms + turns * 1_000}
    return snapshots.entry(*made, id=f"ses_{number:06d}history", directory="", time=times)


# --- import


def _imports(home: Path, times: int, turns: int) -> Iterator[Row]:
    sources = _sources(home)
    queues = dict(_queues(home))
    ratios: dict[str, list[float]] = {name: [] for name in queues}
    at_most: list[float] = []
    per_s: list[float] = []
    for number in range(times + 1):
        entry = _session(number, turns)
        path = home / f"{number}.json"
        path.write_text(json.dumps(entry))
        began_s = time.perf_counter()
        (result,) = import_files([File(str(path))], sources)
        ours_s = (time.perf_counter() - began_s) / turns
        assert result.new == turns + 1, result
        message = json.dumps(entry["messages"][:2]).encode()
        for name, put in queues.items():
            began_s = time.perf_counter()
            for _ in range(turns):
                put(message)
            if number:  # the first of each fills caches
                put_s = (time.perf_counter() - began_s) / turns
                ratios[name].append(put_s / ours_s)
                if name == "huey":
                    at_most.append(put_s * turns / _least_s(entry))
        per_s.append(1 / ours_s)
    note = f"{sorted(per_s)[len(per_s) // 2]:.0f} turns a second"
    yield Row("import: turns a second", "huey, messages a second", ratios["huey"], GOAL, at_least=True, note=note)
    yield Row("the same, if it read and redacted alone", "huey, messages a second", at_most, None)
    for module, goal in PEERS.items():
        what = f"{PACKAGES[module]}, messages a second"
        if module in queues:
            yield Row("import: turns a second", what, ratios[module], goal, at_least=True)
        else:
            yield Row("import: turns a second", what, [math.inf], None, note="not installed")


def _queues(home: Path) -> Iterator[tuple[str, Put]]:
    huey = SqliteHuey(name="peer", filename=str(home / "huey.db"))
    yield "huey", huey.storage.enqueue
    scratch = home / "packages"
    sys.path.append(str(scratch))
    try:
        for module, package in PACKAGES.items():
            command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(scratch), package]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                yield module, _opened(module, home / module)
    finally:
        sys.path.remove(str(scratch))


def _opened(module: str, path: Path) -> Put:
    loaded = import_module(module)
    if module == "litequeue":
        queue = loaded.LiteQueue(str(path))
        return lambda message: queue.put(message.decode())
    put: Put = loaded.SQLiteQueue(str(path), auto_commit=True).put
    return put


def _least_s(entry: snapshots.Fields) -> float:
    """What reading and redacting the turns takes, if nothing else is done."""
    text, redaction = json.dumps(entry), Redaction.compile(())
    began_s = time.perf_counter()
    found = parsed({"root": entry["info"]["id"], "sessions": [json.loads(text)]})
    for turn in found.turns:
        redact_turn(turn, redaction)
    return time.perf_counter() - began_s


# --- looks through the store


class _Looks:
    """One OpenCode's store, and the ledger of somebody who takes all of it."""

    def __init__(self, sources: Sources, store: Store, db: Ledger) -> None:
        self._sources = sources
        self._store = store
        self._db = db
        self._ours = target(db, sources.load(), clock.now_ms())

    def plan(self) -> Plan:
        return self._history().plan(clock.now_ms())

    def queue(self) -> None:
        history = self._history()
        history.queue(self._ours, history.plan(clock.now_ms()).sessions, Queued(), lambda *_: None, lambda: None)

    def deliver(self) -> None:
        """As if each had been delivered and confirmed."""
        with transaction(self._db):
            self._db.execute(
                "update job set state = 'delivered', attempt = 1, attempted_ms = facts_ms, due_ms = null,"
                " finished_ms = facts_ms, confirmed_ms = facts_ms, body_bytes = 0"
            )

    def verify(self) -> None:
        statuses = verify(self._sources, self._store, Looked(), pause=time.sleep)
        assert all(one.is_fine and one.turns for one in statuses)

    def audit(self) -> None:
        folders = Folders(self._db, self._sources)
        for session in exported_sessions(self._db, self._ours.id):
            found = audit(self._db, self._ours.id, self._store, folders, session)
            assert found is not None
            assert found.turns
            assert not found.records

    def recall(self) -> None:
        folders = Folders(self._db, self._sources)
        recall = Recall(self._db, self._ours.id, self._store, folders, pattern="said by nobody")
        assert not any(recall.matching(session) for session in exported_sessions(self._db, self._ours.id))

    def _history(self) -> Backfill:
        return Backfill(self._db, self._sources, self._ours, self._store, Choice())


def _looks(home: Path, sessions: int, times: int) -> Iterator[Row]:
    """With none of it in the ledger for `backfill --dry-run`, with all of it for the others."""
    sources = _sources(home)
    path = store_file(sources.environ)
    written = WrittenStore(path)
    for number in range(sessions):
        written.put(snapshots.snapshot(_session(number, 4)), at_ms=clock.now_ms() - 3_600_000)
    store = Store(path)
    with store.kept_open(), opened(sources.load().spool_directory, dry_run=False) as db:
        looks = _Looks(sources, store, db)
        for name, goal in LOOKS.items():
            acts = {
                "backfill --dry-run": looks.plan,
                "verify": looks.verify,
                "audit": looks.audit,
                "recall --pattern": looks.recall,
            }
            if name == "verify":
                looks.queue()
            elif name == "audit":
                looks.deliver()
            pairs = [(_cpu_s(acts[name]), _cpu_s(lambda: _read_raw(path))) for _ in range(times + 1)][1:]
            note = f"{1000 * min(pairs)[0] / sessions:.1f} ms a session of four turns"
            yield Row(f"{name}: processor time", RAW, [mine / floor for mine, floor in pairs], goal, note=note)


def _attachment(home: Path, size_bytes: int) -> Iterator[Row]:
    sources = _sources(home)
    path = store_file(sources.environ)
    at_ms = clock.now_ms() - 3_600_000
    url = "data:image/png;base64," + base64.b64encode(random.Random(60).randbytes(size_bytes * 3 // 4)).decode()  # noqa: S311 - no secret
    image = {"id": "prt_image", "type": "file", "mime": "image/png", "filename": "image.png", "url": url}
    asked = snapshots.user("msg_image1", at_ms, snapshots.text("look at this", "prt_asked"), image)
    said = snapshots.assistant("msg_image2", at_ms + 10, snapshots.text("seen", "prt_said"), parent="msg_image1")
    times = {"created": at_ms, "updated": at_ms}
    entry = snapshots.entry(asked, said, id="ses_image0000", directory="", time=times)
    WrittenStore(path).put(snapshots.snapshot(entry), at_ms=at_ms)
    store, file = Store(path), home / "image.json"
    file.write_text(json.dumps(entry))
    del entry, asked, image, url
    raw_s = min(_cpu_s(lambda: _read_raw(path)) for _ in range(3))
    with opened(sources.load().spool_directory, dry_run=False) as db:
        looks = _Looks(sources, store, db)
        backfill_s = _cpu_s(looks.queue)
        taken_s = {"backfill": backfill_s, "verify": _cpu_s(looks.verify)}
        looks.deliver()
        taken_s |= {"audit": _cpu_s(looks.audit), "recall --pattern": _cpu_s(looks.recall)}
    other = Sources({**sources.environ, "OPENCODE_HELICONE_SPOOL_DIRECTORY": str(home / "other")}, home, home)
    import_s = _cpu_s(lambda: list(import_files([File(str(file))], other)))
    size = f"{size_bytes >> 20} MB"
    for name, cpu_s in taken_s.items():
        yield Row(f"{name}, an attachment of {size}", RAW, [cpu_s / raw_s], None, note=f"{cpu_s:.2f} s")
    note = f"{backfill_s:.2f} s, beside {import_s:.2f} s"
    yield Row(f"backfill, an attachment of {size}", "import of the same", [backfill_s / import_s], 1.0, note=note)


def _cpu_s(act: Callable[[], object]) -> float:
    began_s = time.process_time()
    act()
    return time.process_time() - began_s


def _read_raw(path: Path) -> int:
    """Every message and part of the store, understood as JSON: the least that whoever looks at all of them must do."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
        tables = ("message", "part")
        return sum(len(json.loads(data)) for one in tables for (data,) in db.execute(f"select data from {one}"))  # noqa: S608
