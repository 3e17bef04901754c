"""Counts jobs by state, destination and folder, without changing any."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, fields

from app.ledger.claims import ISOLATED_KILLS


@dataclass(frozen=True, slots=True)
class Counts:
    """Jobs of one destination, by state and by why they wait or were dropped."""

    pending: int
    delivered: int
    dead: int
    superseded: int
    dropped: int
    dropped_by_reason: Mapping[str, int]
    in_flight: int
    retrying: int
    oldest_pending_ms: int | None
    body_bytes: int


def counts(db: sqlite3.Connection, destination_id: int | None = None) -> Counts:
    """Counts of one destination, or of all."""
    rows = db.execute(
        "select state, drop_reason, count(*) as jobs, sum(lease_until_ms is not null) as leased,"
        " sum(setbacks > 0) as failed, min(enqueued_ms) as oldest_ms, sum(body_bytes) as body_bytes"
        " from job where :destination is null or destination_id = :destination group by state, drop_reason",
        {"destination": destination_id},
    ).fetchall()
    jobs = dict.fromkeys(("pending", "delivered", "dead", "superseded", "dropped"), 0)
    for row in rows:
        jobs[row["state"]] += row["jobs"]
    pending = next((row for row in rows if row["state"] == "pending"), None)
    return Counts(
        **jobs,
        dropped_by_reason={row["drop_reason"]: row["jobs"] for row in rows if row["state"] == "dropped"},
        in_flight=pending["leased"] if pending else 0,
        retrying=pending["failed"] if pending else 0,
        oldest_pending_ms=pending["oldest_ms"] if pending else None,
        body_bytes=sum(row["body_bytes"] for row in rows),
    )


@dataclass(frozen=True, slots=True)
class Conditions:
    """Conditions of one destination's pending jobs."""

    in_backoff: int
    """Not tried before a time that is still to come."""
    isolated: int
    """Suspected of killing workers: tried alone."""


def conditions(db: sqlite3.Connection, destination_id: int, now_ms: int) -> Conditions:
    row = db.execute(
        "select total(due_ms > :now) as in_backoff,"
        " total(kills >= :isolated) as isolated from job where destination_id = :destination and state = 'pending'",
        {"now": now_ms, "isolated": ISOLATED_KILLS, "destination": destination_id},
    ).fetchone()
    return Conditions(**{field.name: int(row[field.name]) for field in fields(Conditions)})


def errors(db: sqlite3.Connection, destination_id: int, limit: int = 5) -> list[tuple[str, str, int]]:
    """(state, error, jobs) of what is dead or waits after a failure, most frequent first."""
    rows = db.execute(
        "select state, error, count(*) as jobs from job where destination_id = ? and error is not null"
        " and state in ('pending', 'dead') group by state, error order by jobs desc, error limit ?",
        (destination_id, limit),
    ).fetchall()
    return [(row["state"], row["error"], row["jobs"]) for row in rows]


def latest_ms(db: sqlite3.Connection) -> int:
    """The latest time at which anything happened to a job, 0 when nothing ever did."""
    row = db.execute("select max(max(enqueued_ms, coalesce(attempted_ms, 0), coalesce(finished_ms, 0))) from job")
    return int(row.fetchone()[0] or 0)


def pending_keys(db: sqlite3.Connection) -> set[str]:
    """Pending keys of all destinations; also of a ledger that was removed or replaced while it is open."""
    return {row["key"] for row in db.cursor().execute("select key from job where state = 'pending'")}


def is_pending(db: sqlite3.Connection, destination_id: int) -> bool:
    """Whether anything waits, however long it will have to."""
    row = db.execute(
        "select 1 from job where destination_id = ? and state = 'pending' limit 1", (destination_id,)
    ).fetchone()
    return row is not None


def is_history(db: sqlite3.Connection, destination_id: int, key: str) -> bool:
    """Whether the job goes after what is live."""
    row = db.execute(
        "select is_history from job where destination_id = ? and key = ?", (destination_id, key)
    ).fetchone()
    return row is not None and bool(row["is_history"])


def sendable(db: sqlite3.Connection, destination_id: int, now_ms: int) -> bool:
    """Whether a worker has something to do now or soon: a pending job, not held, at a destination not paused."""
    row = db.execute(
        "select 1 from job j join destination d on d.id = j.destination_id where j.destination_id = ?"
        " and j.state = 'pending' and j.hold_reason is null and (d.pause_reason is null or d.probe_ms <= ?) limit 1",
        (destination_id, now_ms),
    ).fetchone()
    return row is not None
