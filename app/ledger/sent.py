"""Sent: what left this machine, by what Helicone acknowledged; changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from app.database.connection import Database


@dataclass(frozen=True, slots=True)
class SentJob:
    """One turn, or a session's own record, as far as it has left."""

    key: str
    state: str
    destination_id: int
    session: str
    turn: str
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


@dataclass(frozen=True, slots=True)
class SentSession:
    """What of one session has left to one destination."""

    session: str
    destination_id: int
    last_ms: int
    turns: int
    """Those of which anything left; the session's own record counts as one."""
    records: int
    """That Helicone acknowledged."""
    record_bytes: int
    """Of these, as far as that was kept."""
    redactions: int
    """The same."""
    unmeasured: int
    """Turns from before sizes and redactions were kept."""


_SHARE = "min(taken, records) * record_bytes / max(records, 1)"
"""Of a job's bytes: all of one that is delivered."""
_SUMS = (
    "select session, destination_id, max(last_ms) as last_ms, count(*) as turns, sum(min(taken, records)) as records,"
    f" coalesce(sum({_SHARE}), 0) as record_bytes, coalesce(sum(redactions), 0) as redactions,"
    " sum(iif(record_bytes is null, 1, 0)) as unmeasured"
)
_JOB = (
    "select j.key, j.state, j.destination_id, s.name as session, t.name as turn,"
    " j.record_count as records, {taken}, j.record_bytes, j.redactions"
)
_TAKEN = (
    "max((select count(*) from acknowledgement a where a.turn_id = t.id),"
    "  iif(j.state = 'delivered', j.record_count, 0)) as taken,"
    " coalesce((select max(a.acknowledged_ms) from acknowledgement a where a.turn_id = t.id),"
    "  iif(j.state = 'delivered', j.finished_ms, j.attempted_ms), 0) as last_ms"
)


def sent_since(db: Database, since_ms: int) -> list[SentSession]:
    """What was acknowledged since, the latest session first."""
    rows = db.execute(
        # In this order: what is old is not looked at.
        "with taken as (select turn_id, count(*) as taken, max(acknowledged_ms) as last_ms from acknowledgement"
        "  indexed by acknowledgement_age where acknowledged_ms >= ? group by turn_id),"
        f" sent as ({_JOB.format(taken='a.taken, a.last_ms')}"
        "  from taken a cross join turn t on t.id = a.turn_id join session s on s.id = t.session_id"
        "  join job j on j.turn_id = t.id and j.state <> 'superseded')"
        f" {_SUMS} from sent group by session, destination_id order by 3 desc",
        (since_ms,),
    )
    return [SentSession(**dict(row)) for row in rows]


_OF_SESSION = (
    f"{_JOB.format(taken=_TAKEN)} from destination d cross join session s on s.destination_id = d.id and s.name = ?"
    " cross join turn t on t.session_id = s.id join job j on j.turn_id = t.id and j.state <> 'superseded'"
)


def sent_in_all(db: Database, session: str) -> list[SentSession]:
    """The same of one session, ever: of what is old no more is kept than that it was delivered."""
    rows = db.execute(
        f"{_SUMS} from ({_OF_SESSION}) sent where taken > 0 group by session, destination_id order by 3 desc",
        (session,),
    )
    return [SentSession(**dict(row)) for row in rows]


def sent_of_session(db: Database, session: str) -> list[SentJob]:
    """The same job by job, also what was only tried; the earliest first."""
    rows = db.execute(
        f"select * from ({_OF_SESSION}) sent where taken > 0 or state in ('pending', 'dead') and last_ms > 0"
        " order by last_ms, key",
        (session,),
    )
    return [SentJob(**dict(row)) for row in rows]
