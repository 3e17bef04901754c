"""Dead letters: finds, groups and shows dead and dropped jobs; retries and purges dead ones."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from app.database.connection import Database, Row, transaction
from app.ledger import counters, incidents
from app.ledger.fingerprint import ErrorKind, kind_of_error
from app.ledger.job import BATCH
from app.ledger.versions import AS_NEW, forget_contents


@dataclass(frozen=True, slots=True)
class Letter:
    """A job that is not tried again: dead, or dropped."""

    job_id: int
    key: str
    state: str
    destination_id: int
    session: str
    turn: str
    reason: str
    """Dead: the last attempt's error. Dropped: age, size, deleted, off, policy or purged."""
    fingerprint: str
    """Of the error; '' for a dropped one."""
    attempts: int
    """Claims so far."""
    records: int
    body_bytes: int
    """Compressed; 0 for a dropped one."""
    enqueued_ms: int
    finished_ms: int


@dataclass(frozen=True, slots=True)
class Group:
    """Letters with one reason."""

    fingerprint: str
    reason: str
    """Dead: the error without what differs from job to job."""
    jobs: int
    last_ms: int
    answer: str = ""
    """How Helicone's answer to the latest of them began, redacted; '' where nobody looked."""


@dataclass(frozen=True, slots=True)
class Attempt:
    number: int
    started_ms: int
    ended_ms: int | None
    """None: it ended with its worker."""
    status: int | None
    error: str | None
    answer: str | None


@dataclass(frozen=True, slots=True)
class Choice:
    """Which dead letters are meant; each part that is given narrows it."""

    keys: tuple[str, ...] | None = None
    fingerprint: str | None = None
    since_ms: int | None = None
    """Those that died then or later."""
    destination_id: int | None = None


EVERY_LETTER = Choice()

_CHOSEN = (
    "state = 'dead' and (:keys is null or key in (select value from json_each(:keys)))"
    " and (:errors is null or coalesce(error, '') in (select value from json_each(:errors)))"
    " and finished_ms >= :since and (:destination is null or destination_id = :destination)"
)


def _bound(db: Database, choice: Choice) -> dict[str, object]:
    """The arguments of _CHOSEN. A fingerprint stands for the errors that have it."""
    errors = None
    if choice.fingerprint is not None:
        found = db.execute("select distinct reason from tally where state = 'dead'")
        errors = [error for (error,) in found if kind_of_error(error).fingerprint == choice.fingerprint]
    return {
        "keys": None if choice.keys is None else json.dumps(choice.keys),
        "errors": None if errors is None else json.dumps(errors),
        "since": choice.since_ms or 0,
        "destination": choice.destination_id,
    }


def dead_groups(db: Database, choice: Choice = EVERY_LETTER) -> list[Group]:
    """Groups of dead letters by the fingerprint of their error, the most frequent first."""
    of_error = (
        "from job where state = 'dead' and destination_id = t.destination_id and counted_as = t.reason"
        " and finished_ms >= :since and (:keys is null or key in (select value from json_each(:keys)))"
    )
    rows = db.execute(
        f"select reason, iif(:since > 0 or :keys is not null, (select count(*) {of_error}), jobs) as jobs,"
        f" (select max(finished_ms) {of_error}) as last_ms from (select destination_id, reason, sum(jobs) as jobs"
        "  from tally where state = 'dead' and (:destination is null or destination_id = :destination)"
        "  and (:errors is null or reason in (select value from json_each(:errors))) group by 1, 2) t",
        _bound(db, choice),
    ).fetchall()
    jobs: Counter[ErrorKind] = Counter()
    last_ms: dict[ErrorKind, int] = {}
    for row in rows:
        if row["jobs"]:
            kind = kind_of_error(row["reason"])
            jobs[kind] += row["jobs"]
            last_ms[kind] = max(row["last_ms"], last_ms.get(kind, 0))
    return [Group(kind.fingerprint, kind.text, number, last_ms[kind]) for kind, number in jobs.most_common()]


def dropped_groups(db: Database, since_ms: int = 0) -> list[Group]:
    """Groups of dropped jobs by reason, the most frequent first."""
    rows = db.execute(
        "select drop_reason, count(*) as jobs, max(finished_ms) as last_ms from job"
        " where state = 'dropped' and finished_ms >= ? group by drop_reason order by jobs desc, drop_reason",
        (since_ms,),
    ).fetchall()
    return [Group("", row["drop_reason"], row["jobs"], row["last_ms"]) for row in rows]


_LETTER = (
    "select job.id, job.key, job.state, job.destination_id, s.name as session, t.name as turn, job.drop_reason,"
    " coalesce(job.error, '') as error, job.attempt, job.record_count, job.body_bytes, job.enqueued_ms,"
    " job.finished_ms from job join session s on s.id = job.session_id join turn t on t.id = job.turn_id"
)


# No parameter: only so does SQLite use the indexes of what is dead and of what was dropped.
_OF_STATE = {"dead": "job.state = 'dead'", "dropped": "job.state = 'dropped'"}


def dead_letters(db: Database, choice: Choice = EVERY_LETTER, limit: int = BATCH) -> list[Letter]:
    """The latest first."""
    rows = db.execute(
        f"{_LETTER} where job.id in (select id from job where {_CHOSEN} order by finished_ms desc, id desc"
        " limit :limit) order by job.finished_ms desc, job.id desc",
        {**_bound(db, choice), "limit": limit},
    )
    return [_read(row) for row in rows]


def dropped_letters(db: Database, since_ms: int = 0, limit: int = BATCH) -> list[Letter]:
    """The latest first."""
    rows = db.execute(
        f"{_LETTER} where job.id in (select id from job where state = 'dropped' and finished_ms >= ?"
        " order by finished_ms desc, id desc limit ?) order by job.finished_ms desc, job.id desc",
        (since_ms, limit),
    )
    return [_read(row) for row in rows]


def dead_keys(db: Database, choice: Choice) -> list[str]:
    """Keys of dead letters, to be retried or purged in batches: what dies meanwhile is not among them."""
    return [
        row[0] for row in db.execute(f"select distinct key from job where {_CHOSEN} order by key", _bound(db, choice))
    ]


def letters_of(
    db: Database, prefix: str, state: Literal["dead", "dropped"], limit: int = 10, destination_id: int | None = None
) -> list[Letter]:
    """Letters whose key begins so, of one destination or of all. One key may be dead at several."""
    rows = db.execute(
        f"{_LETTER} where {_OF_STATE[state]} and substr(job.key, 1, :length) = :prefix"
        " and (:destination is null or job.destination_id = :destination) order by job.key, job.id limit :limit",
        {"length": len(prefix), "prefix": prefix, "destination": destination_id, "limit": limit},
    )
    return [_read(row) for row in rows]


def letters_of_session(
    db: Database, session: str, state: Literal["dead", "dropped"], limit: int = BATCH
) -> list[Letter]:
    """Letters of one session of OpenCode, by its whole id; in the order in which they were queued."""
    rows = db.execute(
        f"{_LETTER} where {_OF_STATE[state]} and +s.name = ? order by job.enqueued_ms, job.id limit ?",
        (session, limit),
    )
    return [_read(row) for row in rows]


def _read(row: Row) -> Letter:
    is_dead = row["state"] == "dead"
    return Letter(
        job_id=row["id"],
        key=row["key"],
        state=row["state"],
        destination_id=row["destination_id"],
        session=row["session"],
        turn=row["turn"],
        reason=row["error"] if is_dead else row["drop_reason"],
        fingerprint=kind_of_error(row["error"]).fingerprint if is_dead else "",
        attempts=row["attempt"],
        records=row["record_count"],
        body_bytes=row["body_bytes"],
        enqueued_ms=row["enqueued_ms"],
        finished_ms=row["finished_ms"],
    )


def attempts(db: Database, job_id: int) -> list[Attempt]:
    """The last few, in order."""
    rows = db.execute("select * from attempt where job_id = ? order by number", (job_id,))
    return [
        Attempt(row["number"], row["started_ms"], row["ended_ms"], row["status"], row["error"], row["answer"])
        for row in rows
    ]


def retry_dead(db: Database, choice: Choice, now_ms: int) -> list[tuple[int, str]]:
    """dead -> pending, due now and as if it were new; (destination, key) of each, to be woken.

    No newer version can be in the way: it would have superseded the dead one. Its age counts from now on. What was
    acknowledged need not be sent again, unless it was looked for at Helicone and not found.
    """
    with transaction(db):
        arguments = {**_bound(db, choice), "now": now_ms}
        ids = [row[0] for row in db.execute(f"select id from job where {_CHOSEN}", arguments)]
        arguments["jobs"] = json.dumps(ids)
        db.execute(
            "delete from acknowledgement where (turn_id, request_id) in (select j.turn_id, r.request_id from job j"
            " join record r on r.job_id = j.id where j.id in (select cast(value as bigint) from json_each(:jobs))"
            " and j.resends > 0)",
            arguments,
        )
        rows = db.execute(
            f"update job set state = 'pending', due_ms = :now, finished_ms = null, enqueued_ms = :now, {AS_NEW}"
            " where id in (select cast(value as bigint) from json_each(:jobs)) and state = 'dead'"
            " returning destination_id, key",
            arguments,
        ).fetchall()
    return [(row["destination_id"], row["key"]) for row in rows]


def purge_dead(db: Database, choice: Choice, now_ms: int) -> int:
    """dead -> dropped (purged): bodies and attempts go, the key stays known."""
    with transaction(db):
        rows = db.execute(
            "update job set state = 'dropped', drop_reason = 'purged', finished_ms = :now, body_bytes = 0"
            f" where id in (select id from job where {_CHOSEN}) and state = 'dead' returning id",
            {**_bound(db, choice), "now": now_ms},
        ).fetchall()
        forget_contents(db, [row["id"] for row in rows])
        counters.bump(db, "lost", {"purged": len(rows)}, now_ms)
        if rows:
            incidents.note_unerased(db, now_ms)
    return len(rows)
