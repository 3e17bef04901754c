"""Listing: finds jobs for people, by state, session, folder, time and error, the latest first; changes nothing."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from app.database.connection import Database, Row
from app.ledger import record_identity
from app.ledger.counts import errors
from app.ledger.fingerprint import kind_of_error
from app.ledger.job import SESSION_RECORD
from app.ledger.job import kept as job_records

STATES = ("pending", "delivered", "dead", "dropped", "superseded")
ERRORS_MAX = 10_000
_LATER = "\U0010ffff"
"""Behind everything that begins with the same letters."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One job as it is now."""

    job_id: int
    key: str
    state: str
    drop_reason: str
    """age, size, deleted, off, policy or purged; '' for a job that is not dropped."""
    error: str
    """Why the last attempt failed; '' where none did."""
    hold_reason: str
    """Why the settings in force do not let it be sent; '' where they do."""
    destination_id: int
    session: str
    turn: str
    folder: str
    """Salted hash of the project folder."""
    attempts: int
    is_in_flight: bool
    records: int
    body_bytes: int
    """Compressed, of what is held of it."""
    redactions: int | None
    """How often something was taken out of its records; None where that was not kept yet."""
    enqueued_ms: int
    due_ms: int | None
    """None unless it is pending."""
    finished_ms: int | None
    """None while it is pending."""
    confirmed_ms: int | None

    @property
    def at_ms(self) -> int:
        """When it came into its state."""
        return self.enqueued_ms if self.finished_ms is None else self.finished_ms


@dataclass(frozen=True, slots=True)
class Filter:
    """Which jobs are meant; each part that is given narrows it."""

    states: tuple[str, ...] = ()
    session: str | None = None
    """How the session's name begins."""
    sessions: tuple[str, ...] | None = None
    """Sessions by their names."""
    folders: tuple[str, ...] | None = None
    error: str | None = None
    """A fingerprint, or a part of the error's text."""
    since_ms: int | None = None
    before_ms: int | None = None
    """Of when it was queued."""
    newest: int | None = None
    """Delivered and superseded jobs among so many of the newest alone: nothing has these in order, and all would be
    read where there are few."""


EVERY_JOB = Filter()

_COLUMNS = (
    "j.id as job_id, j.key, j.state, coalesce(j.drop_reason, '') as drop_reason, coalesce(j.error, '') as error,"
    " iif(j.state = 'pending', coalesce(j.hold_reason, ''), '') as hold_reason, j.destination_id, s.name as session,"
    " t.name as turn, s.folder, j.attempt as attempts, j.lease_until_ms is not null as is_in_flight,"
    " j.record_count as records, j.body_bytes, j.redactions, j.enqueued_ms, j.due_ms, j.finished_ms, j.confirmed_ms"
    " from job j join session s on s.id = j.session_id join turn t on t.id = j.turn_id"
)
_WANTED = (
    "(:since is null or j.enqueued_ms >= :since) and (:before is null or j.enqueued_ms < :before)"
    " and (:errors is null or coalesce(j.error, '') in (select value from json_each(:errors)))"
)
_OF_SESSIONS = (
    # In this order: SQLite would begin with all jobs of a state.
    "select j.id from session s cross join turn t on t.session_id = s.id cross join job j on j.turn_id = t.id"
    " where (:states is null or j.state in (select value from json_each(:states)))"
    " and (:names is null or s.name in (select value from json_each(:names)))"
    " and (:folders is null or s.folder in (select value from json_each(:folders)))"
    f" and (:first is null or s.name >= :first and s.name < :last) and {_WANTED} order by j.id desc limit :limit"
)
_LATEST = f"select j.id from job j where {_WANTED} order by j.id desc limit :limit"
_OF_STATE = {
    # Each as an index has them; of what is delivered or replaced most of the latest jobs are some.
    "pending": "job j where j.destination_id = :destination and j.state = 'pending'",
    "dead": "job j indexed by job_dead where j.state = 'dead'",
    "dropped": "job j indexed by job_dropped where j.state = 'dropped'",
    "delivered": "job j where +j.state = 'delivered' and j.id > :after",
    "superseded": "job j where +j.state = 'superseded' and j.id > :after",
}
_ORDER = {"pending": "j.enqueued_ms", "dead": "j.finished_ms", "dropped": "j.finished_ms"}


def jobs(db: Database, wanted: Filter, limit: int) -> list[Listed]:
    """The latest of them."""
    ids = json.dumps(list(_ids(db, wanted, limit)))
    rows = db.execute(f"select {_COLUMNS} where j.id in (select cast(value as bigint) from json_each(?))", (ids,))
    found = [_read(row) for row in rows]
    return sorted(found, key=lambda one: (one.at_ms, one.job_id), reverse=True)[:limit]


def _ids(db: Database, wanted: Filter, limit: int) -> Iterator[int]:
    destinations = [row["id"] for row in db.execute("select id from destination")]
    found = None if wanted.error is None else json.dumps(_errors(db, wanted.error, destinations))
    arguments: dict[str, object] = {
        "since": wanted.since_ms,
        "before": wanted.before_ms,
        "errors": found,
        "states": json.dumps(wanted.states) if wanted.states else None,
        "names": None if wanted.sessions is None else json.dumps(wanted.sessions),
        "folders": None if wanted.folders is None else json.dumps(wanted.folders),
        "first": wanted.session,
        "last": f"{wanted.session}{_LATER}",
        "limit": limit,
        "after": 0,
    }
    if wanted.newest is not None:
        (newest,) = db.execute("select max(id) from job").fetchone()
        arguments["after"] = (newest or 0) - wanted.newest
    if wanted.session is not None or wanted.sessions is not None or wanted.folders is not None:
        yield from (row["id"] for row in db.execute(_OF_SESSIONS, arguments))
        return
    if not wanted.states:
        yield from (row["id"] for row in db.execute(_LATEST, arguments))
    for state in wanted.states:
        statement = f"select j.id from {_OF_STATE[state]} and {_WANTED} order by {_ORDER.get(state, 'j.id')} desc"
        for destination in destinations if state == "pending" else [None]:
            rows = db.execute(f"{statement} limit :limit", {**arguments, "destination": destination})
            yield from (row["id"] for row in rows)


def _errors(db: Database, wanted: str, destinations: Sequence[int]) -> list[str]:
    """The errors that have this fingerprint, or hold this text."""
    known = {error for one in destinations for _, error, _ in errors(db, one, ERRORS_MAX)}
    return [
        error
        for error in known
        if kind_of_error(error).fingerprint == wanted.lower() or wanted.casefold() in error.casefold()
    ]


def job_by_id(db: Database, job_id: int) -> Listed | None:
    row = db.execute(f"select {_COLUMNS} where j.id = ?", (job_id,)).fetchone()
    return None if row is None else _read(row)


def jobs_of_key(db: Database, prefix: str, limit: int = 10) -> list[Listed]:
    """The jobs whose key begins so. One key may be known at several destinations."""
    rows = db.execute(
        f"select {_COLUMNS} where j.id in (select k.id from destination d cross join job k on k.destination_id = d.id"
        " and k.key >= :first and k.key < :last limit :limit) order by j.key, j.id",
        {"first": prefix, "last": f"{prefix}{_LATER}", "limit": limit},
    )
    return [_read(row) for row in rows]


def session_names(db: Database, prefix: str, limit: int = 10) -> list[str]:
    """The names of sessions that begin so."""
    rows = db.execute(
        "select distinct s.name from destination d cross join session s on s.destination_id = d.id"
        " and s.name >= :first and s.name < :last order by s.name limit :limit",
        {"first": prefix, "last": f"{prefix}{_LATER}", "limit": limit},
    )
    return [row["name"] for row in rows]


def _read(row: Row) -> Listed:
    return Listed(**{**dict(row), "is_in_flight": bool(row["is_in_flight"])})


def turn_states(db: Database, sessions: Sequence[str]) -> dict[str, dict[str, int]]:
    """By session, of these: how many of its turns are in which state, at all destinations together."""
    rows = db.execute(
        "select s.name, j.state, count(*) as jobs from destination d cross join session s on s.destination_id = d.id"
        " and s.name in (select value from json_each(?)) cross join turn t on t.session_id = s.id"
        " cross join job j on j.turn_id = t.id and j.state <> 'superseded' where t.name <> ? group by 1, 2",
        (json.dumps(list(sessions)), SESSION_RECORD),
    )
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        found.setdefault(row["name"], {})[row["state"]] = row["jobs"]
    return found


def newest_sessions(db: Database, limit: int) -> list[str]:
    """Root sessions, those that were captured last first."""
    rows = db.execute("select name from session where name = root_name order by id desc limit ?", (limit,))
    return list(dict.fromkeys(row["name"] for row in rows))


def delivered_turns(db: Database, sessions: Sequence[str]) -> set[tuple[str, str]]:
    """(session, turn) of what was delivered to any destination, of these sessions."""
    rows = db.execute(
        "select s.name, t.name from destination d cross join session s on s.destination_id = d.id"
        " and s.name in (select value from json_each(?)) cross join turn t on t.session_id = s.id"
        " where exists (select 1 from job j where j.turn_id = t.id and +j.state = 'delivered')",
        (json.dumps(list(sessions)),),
    )
    return {(row[0], row[1]) for row in rows}


@dataclass(frozen=True, slots=True)
class RecordState:
    """One record of a job: a log at Helicone."""

    request_id: str
    path: str
    """Where it stands in its session; '' where that is not kept."""
    model: str
    start_ms: int | None
    """None where that is not kept."""
    size_bytes: int | None
    """None where its body is not kept any more."""
    acknowledged_ms: int | None
    """When Helicone took it as it is; None where it did not, or where that is not kept any more."""


def record_states(db: Database, job: Listed) -> list[RecordState]:
    """In order. Of a job whose records are gone, as far as it is kept what Helicone knows them by."""
    acknowledged = {
        row["request_id"]: (row["digest"], row["acknowledged_ms"])
        for row in db.execute(
            "select a.request_id, a.digest, a.acknowledged_ms from job j"
            " join acknowledgement a on a.turn_id = j.turn_id where j.id = ?",
            (job.job_id,),
        )
    }
    known = record_identity.read(db, [job.job_id]).get(job.job_id, ())
    fields = {one.request_id: one.identity_fields for one in known}
    ids: list[tuple[uuid.UUID, bytes, int | None]] = [
        (one.request_id, one.digest, one.body_bytes) for one in job_records(db, job.job_id)
    ]
    ids = ids or [(one.request_id, one.digest, None) for one in known]
    found = []
    for request_id, digest, size_bytes in ids:
        taken, at_ms = acknowledged.get(request_id.bytes, (b"", None))
        told = fields.get(request_id)
        path, model, start_ms = (told.path, told.model, told.start_ms) if told is not None else ("", "", None)
        acknowledged_ms = at_ms if taken[: len(digest)] == digest else None
        found.append(RecordState(str(request_id), path, model, start_ms, size_bytes, acknowledged_ms))
    return found


def watched(db: Database, since_ms: int, limit: int) -> list[Listed]:
    """What may just have changed: the jobs queued last, all that are in flight, all that were acknowledged since."""
    rows = db.execute(
        f"select {_COLUMNS} where j.id in (select id from (select id from job order by id desc limit :limit)"
        " union select id from job where lease_until_ms is not null"
        " union select k.id from acknowledgement a join job k on k.turn_id = a.turn_id and k.state <> 'superseded'"
        "  where a.acknowledged_ms >= :since) order by j.id",
        {"since": since_ms, "limit": limit},
    )
    return [_read(row) for row in rows]
