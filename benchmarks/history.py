"""History: import against queues that take as many messages of the size, and looks through OpenCode's store.

Each import is of new sessions, and each queue is a file in the same folder, with the durability it has by default. The
queues but Huey are installed into a scratch folder for the run; where that fails, their rows say so.
"""

from __future__ import annotations

import json
import math
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from importlib import import_module
from pathlib import Path

from huey import SqliteHuey

from app.backfill.backfill import Backfill, Choice, opened
from app.backfill.import_files import import_files
from app.capture.targets import target
from app.runtime import clock
from app.settings.lookup import Sources
from app.sources.opencode.export_files import File
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
PEERS = {"litequeue": None, "persistqueue": GOAL}
PACKAGES = {"litequeue": "litequeue", "persistqueue": "persist-queue"}
Put = Callable[[bytes], object]


def rows(short: bool) -> Iterator[Row]:  # noqa: FBT001 - as benchmarks/table.py says
    with tempfile.TemporaryDirectory() as folder:
        yield from _imports(Path(folder), *((1, 5) if short else (5, TURNS)))
    with tempfile.TemporaryDirectory() as folder:
        yield from _looks(Path(folder), 3 if short else 300, 1 if short else 3)


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
                ratios[name].append((time.perf_counter() - began_s) / turns / ours_s)
        per_s.append(1 / ours_s)
    note = f"{sorted(per_s)[len(per_s) // 2]:.0f} turns a second"
    yield Row("import: turns a second", "huey, messages a second", ratios["huey"], GOAL, at_least=True, note=note)
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


# --- looks through the store


def _looks(home: Path, sessions: int, times: int) -> Iterator[Row]:
    """With all of it in the ledger for `verify`, with none of it for `backfill --dry-run`."""
    sources = _sources(home)
    path = store_file(sources.environ)
    written = WrittenStore(path)
    for number in range(sessions):
        written.put(snapshots.snapshot(_session(number, 4)), at_ms=clock.now_ms() - 3_600_000)
    store = Store(path)
    spool = sources.load().spool_directory
    taken: dict[str, list[float]] = {"backfill --dry-run": [], "verify": []}
    raw_s: list[float] = []
    with store.kept_open(), opened(spool, dry_run=False) as db:
        ours = target(db, sources.load(), clock.now_ms())
        for _ in range(times):
            raw_s.append(_cpu_s(lambda: _read_raw(path)))
            history = Backfill(db, sources, ours, store, Choice())
            taken["backfill --dry-run"].append(_cpu_s(lambda: history.plan(clock.now_ms())))  # noqa: B023
        for _ in range(times):
            taken["verify"].append(_cpu_s(lambda: verify(sources, store, Looked(), pause=time.sleep)))
    for name, cpu_s in taken.items():
        yield _look(name, cpu_s, raw_s, sessions)


def _cpu_s(act: Callable[[], object]) -> float:
    began_s = time.process_time()
    act()
    return time.process_time() - began_s


def _read_raw(path: Path) -> int:
    """Every message and part of the store, understood as JSON: the least that whoever looks at all of them must do."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
        tables = ("message", "part")
        return sum(len(json.loads(data)) for one in tables for (data,) in db.execute(f"select data from {one}"))  # noqa: S608


def _look(name: str, cpu_s: Sequence[float], raw_s: Sequence[float], sessions: int) -> Row:
    ratios = [mine / floor for mine, floor in zip(cpu_s, raw_s, strict=True)]
    note = f"{1000 * min(cpu_s) / sessions:.1f} ms a session of four turns"
    return Row(f"{name}: processor time", "raw sqlite3 and json.loads of the same rows", ratios, None, note=note)
