"""What `jobs list` and `stats` cost where queue and store are long: processor time of the whole command."""

from __future__ import annotations

import json
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from app.database.open import open_ledger
from app.ledger import destinations
from app.sources.opencode.tables import USAGE
from benchmarks import growth
from benchmarks.starts import BARE, cpu_s, environment
from benchmarks.table import Row
from tests.support.stores import TABLES

JOBS, SHORT_JOBS = 100_000, 200
MESSAGES, SHORT_MESSAGES = 7_714, 100
CALLS_PER_TURN = 5
DIRECTORIES = 20
BEGAN_MS = growth.NOW_MS - 3_600_000
_WHAT_IT_SAYS = {
    "role": "assistant",
    "agent": "build",
    "mode": "build",
    "providerID": "acme",
    "modelID": "large",
    "path": {"cwd": "/home/dev/project", "root": "/home/dev/project"},
    "cost": 0.0123,
    "tokens": {"input": 400, "output": 40, "reasoning": 10, "cache": {"read": 600, "write": 3}},
    "finish": "stop",
}


def rows(short: bool) -> Iterator[Row]:  # noqa: FBT001 - as benchmarks/table.py says
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        jobs = SHORT_JOBS if short else JOBS
        with closing(open_ledger(home / "spool")) as ledger:
            destinations.destination(ledger, growth.ENDPOINT, "", 0)
            growth.build(ledger, growth.SHAPES[0], jobs, "", "nobody")
        store = _store(home / "opencode.db", SHORT_MESSAGES if short else MESSAGES)
        environ = {**environment(home), "OPENCODE_DB": str(store)}
        bare = partial(cpu_s, [sys.executable, "-c", BARE], environ)
        times = 2 if short else 15
        for arguments in (["list"], ["list", "--state", "dead"]):
            ours = partial(cpu_s, [sys.executable, "-m", "app", "jobs", *arguments], environ)
            name = f"jobs {' '.join(arguments)}, {jobs:,} wait"
            yield _row(name, f"python -c '{BARE}'", 1.5, ours, bare, times)
        ours = partial(cpu_s, [sys.executable, "-m", "app", "stats", "--since", "2000-01-01"], environ)
        beside = "the same and 1.5 times its SQL"
        yield _row("stats", beside, 1.0, ours, lambda: bare() + 1.5 * _sql_s(store), times)


def _row(name: str, beside: str, goal: float, ours: Callable[[], float], floor: Callable[[], float], times: int) -> Row:
    ours(), floor()
    pairs = [(ours(), floor()) for _ in range(times)]
    mine, least = (min(column) * 1000 for column in zip(*pairs, strict=True))
    note = f"{mine:.0f} ms, beside {least:.0f} ms, CPU"
    return Row(name, beside, [one / other for one, other in pairs], goal, note=note)


def _sql_s(store: Path) -> float:
    with closing(sqlite3.connect(store)) as db:
        began = time.thread_time()
        db.execute(USAGE, {"since": 0, "among": None}).fetchall()
        return time.thread_time() - began


def _store(path: Path, messages: int) -> Path:
    """OpenCode's, with the sessions of the ledger's jobs."""
    sessions = -(-messages // CALLS_PER_TURN // 10) or 1
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(TABLES)
        db.execute(
            "insert into project (id, worktree, time_created, time_updated, sandboxes)"
            " values ('project', '/', 0, 0, '')"
        )
        db.executemany(
            "insert into session (id, project_id, slug, directory, title, version, time_created, time_updated)"
            " values (?, 'project', '', ?, ?, '1.18.33', ?, ?)",
            [
                (f"ses_{at}", f"/home/dev/{at % DIRECTORIES}", f"Title {at}", BEGAN_MS, BEGAN_MS)
                for at in range(sessions)
            ],
        )
        told = [{**_WHAT_IT_SAYS, "parentID": f"msg_{at // CALLS_PER_TURN}"} for at in range(messages)]
        db.executemany(
            "insert into message values (?, ?, ?, ?, ?)",
            [
                (f"msg_a{at}", f"ses_{at // CALLS_PER_TURN % sessions}", BEGAN_MS + at, BEGAN_MS + at, json.dumps(one))
                for at, one in enumerate(told)
            ],
        )
    return path
