"""How much a destination is sent: not while it is paused, then one job at a time, then more.

    fine, quota  ── pause ──▶  down, refused  ── resume ──▶  fine  ── exceed_quota ──▶  quota

While it is paused (down or refused) its jobs wait and are charged nothing; one of them at a time tries again when the
probe is due. After a pause one job is in flight at first, then two, four, eight.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Literal, TypeAlias

Paused: TypeAlias = Literal["down", "refused"]


CONCURRENCY_MAX = 16
"""From here on a destination that was paused takes as many jobs at once as there are threads."""


@dataclass(frozen=True, slots=True)
class Terms:
    """On which terms a job may be claimed now."""

    is_probe: bool
    asks_another: bool
    """The probe is to be a job that was not asked about for long, also where an older one of its session waits."""
    pause_count: int
    room: int | None
    """How many jobs may be claimed; None: as many as there are threads."""


def terms(db: sqlite3.Connection, destination_id: int, now_ms: int) -> Terms | None:
    """None: nothing may be claimed now."""
    row = db.execute(
        "select probe_ms, asks_another, pause_count, concurrency,"
        " (select count(*) from job where lease_until_ms is not null and +destination_id = destination.id) as leased"
        " from destination where id = ? and (probe_ms is null or probe_ms <= ?)",
        (destination_id, now_ms),
    ).fetchone()
    if row is None:
        return None
    if row["probe_ms"] is not None:
        return Terms(is_probe=True, asks_another=bool(row["asks_another"]), pause_count=row["pause_count"], room=1)
    room = None if row["concurrency"] is None else row["concurrency"] - row["leased"]
    if room is not None and room <= 0:
        return None
    return Terms(is_probe=False, asks_another=False, pause_count=0, room=room)


def await_probe(db: sqlite3.Connection, destination_id: int, until_ms: int) -> None:
    """paused -> paused: a probe is under way, and the next one waits for it."""
    db.execute("update destination set probe_ms = ? where id = ? and probe_ms is not null", (until_ms, destination_id))


def pause(  # noqa: PLR0913 - one row's columns
    db: sqlite3.Connection,
    destination_id: int,
    *,
    health: Paused,
    reason: str,
    count: int,
    probe_ms: int,
    now_ms: int,
    asks_another: bool = False,
) -> None:
    """fine, quota or paused -> paused: nothing is claimed before `probe_ms`, and then one job at a time.

    `count` is the number of probes failed in a row, as the attempt knew it that now ends: of a dozen jobs that were in
    flight when the other side went away each says 1, and together they are no reason to wait longer.
    """
    db.execute(
        "update destination set health = ?, pause_reason = ?, pause_count = max(pause_count, ?), probe_ms = ?,"
        " probed_ms = ?, suspect_job_id = null, asks_another = ? where id = ?",
        (health, reason, count, probe_ms, now_ms, asks_another, destination_id),
    )


def resume(db: sqlite3.Connection, destination_id: int) -> bool:
    """paused -> fine, one job at a time to begin with."""
    updated = db.execute(
        "update destination set health = 'fine', pause_reason = null, pause_count = 0, probe_ms = null,"
        " concurrency = 1, concurrency_passes = 0, asks_another = 0 where id = ? and pause_reason is not null",
        (destination_id,),
    )
    return updated.rowcount == 1


def passed(db: sqlite3.Connection, destination_id: int) -> int:
    """A record was accepted; returns how many were so far. Concurrency doubles when as many passed as it allows."""
    row = db.execute(
        "update destination set passes = passes + 1, suspect_job_id = null,"
        " concurrency_passes = iif(concurrency_passes + 1 >= concurrency, 0, concurrency_passes + 1),"
        " concurrency = case when concurrency_passes + 1 < concurrency then concurrency"
        "  when concurrency * 2 < ? then concurrency * 2 else null end"
        " where id = ? returning passes",
        (CONCURRENCY_MAX, destination_id),
    ).fetchone()
    return int(row["passes"])


def exceed_quota(db: sqlite3.Connection, destination_id: int) -> bool:
    """fine -> quota: Helicone goes on to take logs, and keeps their numbers only."""
    updated = db.execute("update destination set health = 'quota' where id = ? and health = 'fine'", (destination_id,))
    return updated.rowcount == 1


def within_quota(db: sqlite3.Connection, destination_id: int) -> bool:
    """quota -> fine: a log was stored with its bodies."""
    updated = db.execute("update destination set health = 'fine' where id = ? and health = 'quota'", (destination_id,))
    return updated.rowcount == 1


def take_sample(db: sqlite3.Connection, destination_id: int, *, now_ms: int, every_ms: int) -> bool:
    """Whether the job that is delivered now is the one of its time that is to be confirmed."""
    updated = db.execute(
        "update destination set sampled_ms = :now where id = :id"
        # A sample from the future was taken before the clock was set back.
        " and (sampled_ms is null or sampled_ms <= :before or sampled_ms > :now)",
        {"id": destination_id, "now": now_ms, "before": now_ms - every_ms},
    )
    return updated.rowcount == 1


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known about a destination when one of its jobs has failed."""

    is_paused: bool
    passes: int
    """Records accepted so far."""
    others_passed: bool
    """A record was accepted since the job's last setback, or ever where this is its first."""
    other_is_suspect: bool
    """Another job has failed, and nothing has passed since."""


def evidence(db: sqlite3.Connection, destination_id: int, job_id: int) -> Evidence:
    row = db.execute(
        "select d.pause_reason is not null as is_paused, d.passes, d.passes > coalesce(j.passes_seen, 0) as passed,"
        " coalesce(d.suspect_job_id <> j.id, 0) as suspected from destination d join job j on j.id = ? where d.id = ?",
        (job_id, destination_id),
    ).fetchone()
    return Evidence(bool(row["is_paused"]), row["passes"], bool(row["passed"]), bool(row["suspected"]))


def suspect(db: sqlite3.Connection, destination_id: int, job_id: int) -> None:
    """Note whose failure it is that the next one may explain."""
    db.execute("update destination set suspect_job_id = ? where id = ?", (job_id, destination_id))


def probe_now(db: sqlite3.Connection, destination_id: int, now_ms: int) -> bool:
    """paused -> paused, but the next probe may run at once (a worker started, somebody asked for a flush)."""
    updated = db.execute(
        "update destination set probe_ms = ? where id = ? and probe_ms > ?", (now_ms, destination_id, now_ms)
    )
    return updated.rowcount == 1
