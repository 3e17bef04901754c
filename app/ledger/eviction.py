"""Evicted jobs, the transitions: bodies are given up, and bodies that were made again are checked and taken.

    pending, dead ─▶ the same, without bodies     give_up_bodies: the record rows stay, and with them what each body
                                                  must be, byte for byte, should it be made again
    pending ─▶ dropped (size)                     claims.drop: OpenCode's store no longer holds the turn

A job whose bundle is missing and that still counts bytes is another thing: it is damaged.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from app.database.connection import Database, lock_rows, transaction
from app.ledger import limits, record_identity
from app.ledger.claims import is_current
from app.ledger.destinations import IN_ROOM
from app.ledger.job import BATCH, Body, Claim, kept
from app.ledger.limits import Limits
from app.ledger.versions import write_records

_RELIED_ON = "store"
_SEVERAL = ""
# The plus, here and below: by the index of what has bodies, not among all that is pending.
HELD = "j.body_bytes > 0 and +j.state in ('pending', 'dead') and j.is_recall = 0"
OF_ROOM = f"+j.destination_id in {IN_ROOM}"
_WITHOUT = "j.state = 'pending' and j.body_bytes = 0 and exists (select 1 from record r where r.job_id = j.id)"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A job whose bodies could be given up."""

    job_id: int
    enqueued_ms: int
    folder: str
    session: str
    turn: str
    body_bytes: int


@dataclass(frozen=True, slots=True)
class Evicted:
    """Evicted turns of one session, which wait without bodies and which no worker could make again."""

    session: str
    folder: str
    policy: str
    """What their bodies were made under; '' where that was not kept."""
    turns: tuple[str, ...]


def held_bytes(db: Database, room: int | None = None) -> int:
    """Bytes of all bodies not delivered, compressed; but not of recalls, for which nothing else is to make room.

    `room`, here and below: of which destinations; see `destinations.IN_ROOM`.
    """
    row = db.execute(
        "select coalesce(sum(body_bytes), 0) from tally where state in ('pending', 'dead') and is_recall = 0"
        f" and destination_id in {IN_ROOM}",
        {"room": room},
    ).fetchone()
    return int(row[0])


def counted_bytes(db: Database, room: int | None = None) -> int:
    """The same, counted job by job."""
    row = db.execute(f"select coalesce(sum(body_bytes), 0) from job j where {HELD} and {OF_ROOM}", {"room": room})
    return int(row.fetchone()[0])


def excess_of_folders(db: Database, bytes_max: Limits, room: int | None = None) -> dict[str, int]:
    """Excess of each folder that holds more than its own limit; counted as by `held_bytes`."""
    return limits.excess(db, bytes_max, f"{HELD} and {OF_ROOM}", room)


def candidates(
    db: Database,
    after: Candidate | None,
    folders: Collection[str] | None = None,
    limit: int = BATCH,
    room: int | None = None,
) -> list[Candidate]:
    """Jobs whose bodies can go, of all or of these folders: none in flight, the oldest first, behind `after`.

    A recall says what no store says: it is none of them.
    """
    rows = db.execute(
        "select j.id, j.enqueued_ms, s.folder, s.name as session, t.name as turn, j.body_bytes from job j"
        " join session s on s.id = j.session_id join turn t on t.id = j.turn_id"
        f" where {HELD} and {OF_ROOM} and j.lease_until_ms is null and (j.enqueued_ms, j.id) > (:enqueued, :id)"
        " and (:folders is null or s.folder in (select value from json_each(:folders)))"
        " and exists (select 1 from bundle b where b.job_id = j.id) order by j.enqueued_ms, j.id limit :limit",
        {
            "enqueued": after.enqueued_ms if after else -1,
            "id": after.job_id if after else -1,
            "folders": None if folders is None else json.dumps(sorted(folders)),
            "limit": limit,
            "room": room,
        },
    )
    return [Candidate(*row) for row in rows]


def give_up_bodies(db: Database, job_ids: Sequence[int], store: str) -> int:
    """pending or dead, not leased -> the same, without bodies. `store` names where their turns are, as a fingerprint.

    Returns the number of jobs.
    """
    with transaction(db):
        rows = db.execute(
            "update job set body_bytes = 0 where id in (select cast(value as bigint) from json_each(?))"
            " and +state in ('pending', 'dead') and lease_until_ms is null and body_bytes > 0 and is_recall = 0"
            " and exists (select 1 from bundle b where b.job_id = job.id) returning id",
            (json.dumps(list(job_ids)),),
        ).fetchall()
        db.executemany("delete from bundle where job_id = ?", [(row["id"],) for row in rows])
        db.execute(
            "insert into meta (name, value) values (?, ?)"
            " on conflict (name) do update set value = iif(meta.value = excluded.value, meta.value, ?)",
            (_RELIED_ON, store, _SEVERAL),
        )
    return len(rows)


def relies_on(db: Database, store: str) -> bool:
    """Whether all bodies were given up because of this store, so that what it lacks is nowhere."""
    row = db.execute("select value from meta where name = ?", (_RELIED_ON,)).fetchone()
    return row is not None and row["value"] == store


def is_evicted(db: Database, claim: Claim) -> bool:
    """Whether the job's bodies were given up, and some of them must be posted."""
    row = db.execute(
        "select 1 from job where id = ? and body_bytes = 0 and exists (select 1 from record r where r.job_id = job.id"
        "  and not exists (select 1 from acknowledgement a where a.turn_id = job.turn_id"
        "  and a.request_id = r.request_id and a.digest = r.digest))",
        (claim.job_id,),
    ).fetchone()
    return row is not None


@dataclass(frozen=True, slots=True)
class Recaptured:
    """All bodies of a job that gave its own up, made again."""

    key: str
    """Of the turn as it is now: another one than the job's where it has changed."""
    bodies: tuple[Body, ...]
    known_marks: str
    """As `Version.known_marks`."""


def take_recaptured(db: Database, claim: Claim, made: Recaptured) -> bool:
    """Whether the claimed job may post these: the bodies that it had, or from now on has these in their place.

    False too when the claim no longer stands.
    """
    with transaction(db):
        # Or a newer version takes its place, and its records away, while these are written.
        lock_rows(db, "select 1 from job where id = ?", (claim.job_id,))
        if _are_those(db, claim.job_id, made):
            return True
        if not (is_current(db, claim) and is_evicted(db, claim)):
            return False
        if made.key != claim.key or not _may_differ(db, claim.job_id, made):
            return False
        db.execute("delete from record where job_id = ?", (claim.job_id,))
        write_records(db, claim.job_id, made.bodies)
        record_identity.write(db, claim.job_id, made.bodies)
        db.execute(
            "update job set record_count = ?, record_bytes = ?, redactions = null, known_marks = ?"
            " where id = ? and state = 'pending'",
            (len(made.bodies), sum(one.body_bytes for one in made.bodies), made.known_marks, claim.job_id),
        )
    return True


def may_refill(db: Database, destination_id: int, made: Recaptured) -> bool:
    """Whether the hook of its project may fill the job of their key with these bodies; also where there is no such job.

    What was taken out of a job from before that was kept, its own project's hook knows as well as anybody.
    """
    job = db.execute(
        "select id, known_marks from job where destination_id = ? and key = ?", (destination_id, made.key)
    ).fetchone()
    if job is None or not kept(db, job["id"]) or _are_those(db, job["id"], made):
        return True
    if job["known_marks"] is None:
        return not _was_posted(db, job["id"])
    return _may_differ(db, job["id"], made)


def _are_those(db: Database, job_id: int, made: Recaptured) -> bool:
    wanted = [(one.request_id, one.digest) for one in kept(db, job_id)]
    return wanted == [(body.request_id, body.digest) for body in made.bodies]


def _may_differ(db: Database, job_id: int, made: Recaptured) -> bool:
    """Whether bytes that are not those of then hold no secret that was known then, and nobody was sent any of those.

    The rules are today's, as for all that is captured now; but whoever makes it again must know each secret that was
    known then.
    """
    (known,) = db.execute("select known_marks from job where id = ?", (job_id,)).fetchone()
    is_as_strict = known is not None and set(known.split()) <= set(made.known_marks.split())
    return is_as_strict and not _was_posted(db, job_id)


def _was_posted(db: Database, job_id: int) -> bool:
    """Whether any record of the job may have reached anybody. An attempt that did not connect reached nobody."""
    row = db.execute(
        "select 1 from job j where j.id = ? and (j.kills > 0 or exists (select 1 from record r join acknowledgement a"
        "  on a.turn_id = j.turn_id and a.request_id = r.request_id and a.digest = r.digest where r.job_id = j.id)"
        " or exists (select 1 from attempt t where t.job_id = j.id"
        "  and (t.number < j.attempt or j.lease_until_ms is null) and (t.ended_ms is null or t.status is not null"
        "   or not (t.error like 'ConnectError%' or t.error like 'ConnectTimeout%' or t.error like 'not tried%'))))",
        (job_id,),
    ).fetchone()
    return row is not None


def evicted(db: Database, destination_id: int, folders: Sequence[str]) -> list[Evicted]:
    """Evicted turns that wait, held, for the hook of one of these folders; the oldest first, at most BATCH sessions."""
    rows = db.execute(
        "select s.name, s.folder, coalesce(p.facts, '') as policy, json_group_array(t.name) as turns"
        " from job j indexed by job_evicted join session s on s.id = j.session_id join turn t on t.id = j.turn_id"
        " left join policy p on p.id = j.policy_id"
        f" where j.destination_id = ? and {_WITHOUT} and j.hold_reason is not null and j.lease_until_ms is null"
        " and s.folder in (select value from json_each(?)) group by s.id, p.id order by min(j.id) limit ?",
        (destination_id, json.dumps(list(folders)), BATCH),
    )
    return [Evicted(row["name"], row["folder"], row["policy"], tuple(sorted(json.loads(row["turns"])))) for row in rows]


def without_bodies(db: Database, destination_id: int) -> int:
    """Jobs that wait without their bodies."""
    row = db.execute(
        "select coalesce(sum(jobs), 0) from tally where destination_id = ? and is_evicted = 1", (destination_id,)
    ).fetchone()
    return int(row[0])
