"""Sent: what left this machine, by what Helicone acknowledged; changes nothing."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SentJob:
    """One turn, or a session's own record, as far as it has left."""

    key: str
    state: str
    destination_id: int
    session: str
    turn: str
    folder: str
    records: int
    """Of the job."""
    taken: int
    """Those that Helicone acknowledged, in whatever version."""
    last_ms: int
    """When it acknowledged the last one; or when that was tried last."""
    record_bytes: int | None
    """Of the job's records, uncompressed; None where that was not kept yet."""
    redactions: int | None
    """How often something was taken out of them; None where that was not kept yet."""


_JOB = (
    "select j.key, j.state, j.destination_id, s.name as session, t.name as turn, s.folder,"
    " j.record_count as records, {taken}, j.record_bytes, j.redactions"
)


_TAKEN = (
    "max((select count(*) from acknowledgement a where a.turn_id = t.id),"
    "  iif(j.state = 'delivered', j.record_count, 0)) as taken,"
    " coalesce((select max(a.acknowledged_ms) from acknowledgement a where a.turn_id = t.id),"
    "  iif(j.state = 'delivered', j.finished_ms, j.attempted_ms), 0) as last_ms"
)


def sent_since(db: sqlite3.Connection, since_ms: int, limit: int) -> list[SentJob]:
    """What was acknowledged since, the latest first; at most so many jobs."""
    rows = db.execute(
        # In this order: what is old is not looked at.
        "with taken as (select turn_id, count(*) as taken, max(acknowledged_ms) as last_ms from acknowledgement"
        "  where acknowledged_ms >= :since group by turn_id order by last_ms desc limit :limit)"
        f" {_JOB.format(taken='a.taken, a.last_ms')} from taken a cross join turn t on t.id = a.turn_id"
        " join session s on s.id = t.session_id join job j on j.turn_id = t.id and j.state <> 'superseded'"
        " order by a.last_ms desc, j.id desc",
        {"since": since_ms, "limit": limit},
    )
    return [SentJob(**dict(row)) for row in rows]


def sent_of_session(db: sqlite3.Connection, session: str) -> list[SentJob]:
    """What of one session was acknowledged, ever, or only tried; the earliest first.

    Of what is old no more is kept than that it was delivered.
    """
    rows = db.execute(
        f"select * from ({_JOB.format(taken=_TAKEN)} from destination d cross join session s on s.destination_id = d.id"
        "  and s.name = ? cross join turn t on t.session_id = s.id"
        "  join job j on j.turn_id = t.id and j.state <> 'superseded')"
        " where taken > 0 or state in ('pending', 'dead') and last_ms > 0 order by last_ms, key",
        (session,),
    )
    return [SentJob(**dict(row)) for row in rows]
