"""Presence: which processes are alive, which of the workers leads, and what time it is, as the server says.

    a row that is touched every BEAT_MS       says who is there; SILENT_MS without it: dead
    a lock that the server holds for a        gone at once when the process dies: then MISSING_MS without a touch are
      connection                              enough. Of a server that has just started it says nothing
    a job's lease                             the truth: what was not renewed may be taken back, whoever lives

A machine that is gone leaves its connection open until the keepalive notices; a server that starts anew has no locks,
though everybody is alive; a process that was stopped comes back. So the lock only ever makes the wait shorter.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.database.connection import Row
from app.database.postgres import PostgresLedger

BEAT_MS = 5_000
MISSING_MS = 12_000
"""Two beats, and some time for a machine that is busy."""
SILENT_MS = 30_000
LEADS_MS = 15_000
"""The leader takes its place anew with each look; so long after its last one another process may."""
STARTING_MS = 60_000
"""So long after the server's start nobody is taken for dead: all locks are gone, and who is alive has to come back."""


class ServerClock:
    """The server's time, by this machine's steady clock: nobody's wall clock decides what is due.

    `time.CLOCK_BOOTTIME`, where there is one, goes on while the machine sleeps.
    """

    def __init__(self, steady_ms: Callable[[], int] | None = None) -> None:
        self._steady_ms = steady_ms or _steady_ms
        self._ahead_ms: int | None = None

    def set(self, ask: Callable[[], int]) -> int:
        """Ask for the server's time; that time."""
        before_ms = self._steady_ms()
        now_ms = ask()
        # The answer was on its way for half of the time, at best.
        self._ahead_ms = now_ms - (before_ms + self._steady_ms()) // 2
        return now_ms

    def now_ms(self) -> int:
        """Milliseconds UTC. Raises RuntimeError before the first `set`."""
        if self._ahead_ms is None:
            raise RuntimeError("the server was not asked for its time yet")
        return self._steady_ms() + self._ahead_ms


def _steady_ms() -> int:
    return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)) // 1_000_000


def server_ms(db: PostgresLedger) -> int:
    return int(db.execute("select floor(extract(epoch from clock_timestamp()) * 1000)").fetchone()[0])


def hold(db: PostgresLedger, name: str) -> None:
    """While this connection lives, so does the worker. A pooler would keep it when we are gone.

    Without waiting: where the network went away, the server may think for two hours that the connection before lives.
    """
    db.execute("select pg_try_advisory_lock(hashtextextended(?, 0))", (name,))


def beat(db: PostgresLedger, name: str, says: Mapping[str, object]) -> int:
    """It lives; the server's time."""
    row = db.execute(
        "insert into worker (name, seen_ms, says)"
        " values (?, floor(extract(epoch from clock_timestamp()) * 1000), ?)"
        " on conflict (name) do update set seen_ms = excluded.seen_ms, says = excluded.says returning seen_ms",
        (name, json.dumps(says, sort_keys=True)),
    )
    return int(row.fetchone()[0])


def withdraw(db: PostgresLedger, name: str) -> None:
    """It ends, and holds nothing any more."""
    db.execute("delete from leader where worker = ?", (name,))
    db.execute("delete from worker where name = ?", (name,))


def lead(db: PostgresLedger, name: str) -> bool:
    """Become the leader, or stay it. False while another one leads; not one that the server's clock puts far ahead."""
    row = db.execute(
        "insert into leader (one, worker, until_ms)"
        " values (1, :name, floor(extract(epoch from clock_timestamp()) * 1000) + :leads)"
        " on conflict (one) do update set worker = excluded.worker, until_ms = excluded.until_ms"
        " where leader.worker = excluded.worker or leader.until_ms < excluded.until_ms - :leads"
        "  or leader.until_ms > excluded.until_ms returning worker",
        {"name": name, "leads": LEADS_MS},
    ).fetchone()
    return row is not None


def is_starting(db: PostgresLedger) -> bool:
    """Whether the server has run for so short a time that nothing can be said about who is alive."""
    row = db.execute(
        "select extract(epoch from clock_timestamp() - pg_postmaster_start_time()) * 1000 < ?", (STARTING_MS,)
    )
    return bool(row.fetchone()[0])


def dead(db: PostgresLedger, names: Sequence[str]) -> list[str]:
    """Which of these workers are dead. One that is asked for and has no row has withdrawn, or was forgotten."""
    if not names:
        return []
    rows = db.execute(
        "select asked.value as name from json_each(:names) asked left join worker w on w.name = asked.value"
        " cross join (select floor(extract(epoch from clock_timestamp()) * 1000) as ms) now on true"
        " where w.name is null or w.seen_ms < now.ms - :silent or w.seen_ms < now.ms - :missing"
        # Taken for the length of this statement by whoever asks: nobody held it.
        " and pg_try_advisory_xact_lock(hashtextextended(w.name, 0))",
        {"names": json.dumps(list(names)), "silent": SILENT_MS, "missing": MISSING_MS},
    )
    return [row["name"] for row in rows]


@dataclass(frozen=True, slots=True)
class Process:
    """As it was when it last said so."""

    machine: str
    process: int
    version: str
    seen_ms: int
    is_silent: bool
    """For so long that it is dead, or cannot reach the server. Its row stays for a day."""


@dataclass(frozen=True, slots=True)
class Worker(Process):
    leads: bool


INTAKE = {"kind": "intake"}
"""What an intake says beside what a worker does."""


def workers(db: PostgresLedger) -> list[Worker]:
    """The one that was seen last comes first."""
    return [Worker(**_process(row), leads=bool(row["leads"])) for row in _rows(db, is_intake=False)]


def intakes(db: PostgresLedger) -> list[Process]:
    """In the same order."""
    return [Process(**_process(row)) for row in _rows(db, is_intake=True)]


def _rows(db: PostgresLedger, *, is_intake: bool) -> Iterator[Row]:
    rows = db.execute(
        "select w.says, w.seen_ms, w.seen_ms < now.ms - :silent as is_silent, l.worker is not null as leads"
        " from worker w join (select floor(extract(epoch from clock_timestamp()) * 1000) as ms) now on true"
        " left join leader l on l.worker = w.name and l.until_ms >= now.ms order by w.seen_ms desc, w.name",
        {"silent": SILENT_MS},
    )
    return (row for row in rows if (json.loads(row["says"]).get("kind") == INTAKE["kind"]) == is_intake)


def _process(row: Row) -> dict[str, Any]:
    says = json.loads(row["says"])
    return {
        **{name: says[name] for name in ("machine", "process", "version")},
        "seen_ms": row["seen_ms"],
        "is_silent": bool(row["is_silent"]),
    }


def forget_dead(db: PostgresLedger) -> None:
    """Rows of processes that nobody has seen for a day."""
    db.execute("delete from worker where seen_ms < floor(extract(epoch from clock_timestamp()) * 1000) - 86400000")
