"""The ledger: every rule about jobs, one function per transition, the state it leaves named in the WHERE.

The picture of the states stands at the head of migrations/0001_initial.sql. Functions take the connection first;
`insert`, `claim` and the others that need several statements open their own transaction, so the caller must not be
inside one. Times come in as milliseconds UTC: nothing here reads a clock.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import uuid
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from app import crashpoint
from app.db import transaction

BATCH = 500
"""Rows that one maintenance call touches at the most."""
KILLS_MAX = 10
"""Attempts that may end with their worker's death before the job is taken for the killer."""
RING_AGAIN_MS = 15_000
"""After this a ring that brought no claim is taken for lost."""
SESSION_RECORD = "session"
"""The turn name of a session's own root record."""


class LedgerError(RuntimeError):
    """A row holds what it must not hold: a body that does not match its checksum, a key of another turn."""


@dataclass(frozen=True, slots=True)
class Body:
    """One record as it is kept: the bytes to post and who they are at Helicone."""

    request_id: uuid.UUID
    body: bytes

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.body).digest()[:16]


@dataclass(frozen=True, slots=True)
class Version:
    """One version of one turn, before it is known whether the ledger wants it."""

    session: str
    root: str
    turn: str
    key: str
    facts_ms: int
    user_id: str
    folder: str


class Standing(Enum):
    """What the ledger would do with a version, and what it did."""

    NEW = "new"
    REOPENED = "reopened"
    KNOWN = "known"
    SUPERSEDED = "superseded"
    """Older than what the ledger has."""
    SHUT = "shut"
    """The turn was dropped as `off` or `deleted`: it stays so until somebody asks."""


@dataclass(frozen=True, slots=True)
class Claim:
    job_id: int
    turn_id: int
    key: str
    session: str
    attempt: int
    failures: int
    """Charged attempts since a record was last acknowledged."""
    paused: bool
    """The destination was paused: this attempt is its probe."""
    pause_count: int


# --- in: versions become jobs ----------------------------------------------------------------------------------------


def frozen(db: sqlite3.Connection, destination_id: int, session: str) -> tuple[str, str] | None:
    """(root name, user id) that the session's first record was made with, None for a session not seen."""
    row = db.execute(
        "select root_name, user_id from session where destination_id = ? and name = ?", (destination_id, session)
    ).fetchone()
    return None if row is None else (row["root_name"], row["user_id"])


def standing(
    db: sqlite3.Connection, destination_id: int, version: Version, *, reopen: Collection[str] = (), off: bool = False
) -> Standing:
    """What `insert` would do with this version now; a cheap look before its bodies are made.

    `reopen` names the reasons of dropped jobs that the caller asks to have back. With `off` (export is switched off)
    a version says nothing about a turn that the ledger has already, unless it is newer.
    """
    current = db.execute(
        "select j.key, j.state, j.drop_reason, j.facts_ms from session s"
        " join turn t on t.session_id = s.id and t.name = ?"
        " join job j on j.turn_id = t.id and j.state <> 'superseded'"
        " where s.destination_id = ? and s.name = ?",
        (version.turn, destination_id, version.session),
    ).fetchone()
    if current is not None and current["key"] == version.key:
        return Standing.REOPENED if current["drop_reason"] in reopen else Standing.KNOWN
    if current is not None and current["drop_reason"] in {"off", "deleted"} and current["drop_reason"] not in reopen:
        return Standing.SHUT
    # OpenCode's update time moves on with every turn: it does not make the session's own record a newer one.
    if off and current is not None and (version.turn == SESSION_RECORD or version.facts_ms <= current["facts_ms"]):
        return Standing.KNOWN
    exists = db.execute(
        "select 1 from job where destination_id = ? and key = ?", (destination_id, version.key)
    ).fetchone()
    if current is not None and version.facts_ms < current["facts_ms"]:
        return Standing.KNOWN if exists else Standing.SUPERSEDED
    return Standing.REOPENED if exists else Standing.NEW


def see_again(db: sqlite3.Connection, destination_id: int, version: Version) -> None:
    """The same facts seen later: keep their latest time, so that an older version stays older."""
    db.execute(
        "update job set facts_ms = ? where destination_id = ? and key = ? and state <> 'superseded' and facts_ms < ?",
        (version.facts_ms, destination_id, version.key, version.facts_ms),
    )


def insert(
    db: sqlite3.Connection,
    destination_id: int,
    version: Version,
    bodies: Sequence[Body],
    *,
    now_ms: int,
    reopen: Collection[str] = (),
    off: bool = False,
) -> Standing:
    """(nothing) -> pending, superseded -> pending or dropped -> pending, in one transaction; idempotent by key.

    The version that was current becomes superseded. With `off` the job is born dropped, without bodies.
    Raises LedgerError for a key that another turn has.
    """
    with transaction(db):
        verdict = standing(db, destination_id, version, reopen=reopen, off=off)
        if verdict in {Standing.KNOWN, Standing.SHUT}:
            see_again(db, destination_id, version)
            return verdict
        session_id, turn_id = _place(db, destination_id, version)
        if verdict is Standing.SUPERSEDED:
            _write(db, destination_id, session_id, turn_id, version, (), now_ms, "superseded", None)
            return verdict
        _supersede(db, turn_id, version.key, now_ms)
        state = "dropped" if off else "pending"
        _write(
            db,
            destination_id,
            session_id,
            turn_id,
            version,
            () if off else bodies,
            now_ms,
            state,
            "off" if off else None,
        )
        crashpoint.reach("enqueue.inserting")
        return verdict


def _place(db: sqlite3.Connection, destination_id: int, version: Version) -> tuple[int, int]:
    db.execute(
        "insert into session (destination_id, name, root_name, user_id, folder) values (?, ?, ?, ?, ?)"
        " on conflict do nothing",
        (destination_id, version.session, version.root, version.user_id, version.folder),
    )
    session_id = int(
        db.execute(
            "select id from session where destination_id = ? and name = ?", (destination_id, version.session)
        ).fetchone()[0]
    )
    db.execute("insert into turn (session_id, name) values (?, ?) on conflict do nothing", (session_id, version.turn))
    turn_id = int(
        db.execute("select id from turn where session_id = ? and name = ?", (session_id, version.turn)).fetchone()[0]
    )
    return session_id, turn_id


def _supersede(db: sqlite3.Connection, turn_id: int, key: str, now_ms: int) -> None:
    """pending, delivered, dead or dropped -> superseded, for the version of this turn that is current so far.

    A lease stays: until its worker lets go, nothing else of the session may be in flight.
    """
    _supersede_where(db, "turn_id = :turn and key <> :key", {"turn": turn_id, "key": key}, now_ms)


def _supersede_where(db: sqlite3.Connection, condition: str, arguments: dict[str, object], now_ms: int) -> int:
    rows = db.execute(
        "update job set state = 'superseded', drop_reason = null, due_ms = null, finished_ms = :now, body_bytes = 0"
        f" where {condition} and state <> 'superseded' returning id",
        {**arguments, "now": now_ms},
    ).fetchall()
    db.executemany("delete from record where job_id = ?", [(row["id"],) for row in rows])
    return len(rows)


def _write(  # noqa: PLR0913 - one row's columns
    db: sqlite3.Connection,
    destination_id: int,
    session_id: int,
    turn_id: int,
    version: Version,
    bodies: Sequence[Body],
    now_ms: int,
    state: str,
    drop_reason: str | None,
) -> None:
    packed = [(body, zlib.compress(body.body)) for body in bodies]
    pending = state == "pending"
    row = db.execute(
        "insert into job (destination_id, session_id, turn_id, key, state, drop_reason, facts_ms, enqueued_ms, due_ms,"
        " finished_ms, record_count, body_bytes) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " on conflict (destination_id, key) do update set state = excluded.state, drop_reason = excluded.drop_reason,"
        " facts_ms = excluded.facts_ms, enqueued_ms = excluded.enqueued_ms, due_ms = excluded.due_ms,"
        " finished_ms = excluded.finished_ms, record_count = excluded.record_count, body_bytes = excluded.body_bytes,"
        # The attempt number moves on: a worker that still posts the old version must not finish this one.
        " attempt = attempt + 1, lease_until_ms = null, worker = null,"
        " failures = 0, kills = 0, attempted_ms = null, rung_ms = null, error = null"
        " where state in ('superseded', 'dropped') and turn_id = excluded.turn_id returning id",
        (
            destination_id,
            session_id,
            turn_id,
            version.key,
            state,
            drop_reason,
            version.facts_ms,
            now_ms,
            now_ms if pending else None,
            None if pending else now_ms,
            len(bodies),
            sum(len(blob) for _, blob in packed),
        ),
    ).fetchone()
    if row is None:
        raise LedgerError(f"job {version.key[:12]} belongs to another turn than {version.turn}")
    db.executemany(
        "insert into record (job_id, position, request_id, digest, body) values (?, ?, ?, ?, ?)",
        [
            (row["id"], position, body.request_id.bytes, body.digest, blob)
            for position, (body, blob) in enumerate(packed)
        ],
    )


def place_under(db: sqlite3.Connection, destination_id: int, child: str, parent: Version, now_ms: int) -> int:
    """Note that session `child` is shown inside `parent.root`; what it exported as its own root is superseded.

    Its records come again, under the same request ids, with the root's turn. Returns the number of jobs superseded.
    """
    known = frozen(db, destination_id, child)
    if known is not None and known[0] == parent.root:
        return 0
    with transaction(db):
        row = db.execute(
            "insert into session (destination_id, name, root_name, user_id, folder) values (?, ?, ?, ?, ?)"
            " on conflict (destination_id, name) do update set root_name = excluded.root_name returning id",
            (destination_id, child, parent.root, parent.user_id, parent.folder),
        ).fetchone()
        return _supersede_where(db, "session_id = :session", {"session": row["id"]}, now_ms)


def adopt(
    db: sqlite3.Connection, keyless_id: int, destination_id: int, *, now_ms: int, session: str | None = None
) -> int:
    """Give what was captured while no key was known to the destination that has one; returns the number of jobs.

    Of one session only, or of all.

    Sessions that the destination does not know move whole. Of the others the waiting jobs move, as versions like any
    other: one that is older than what the destination has becomes superseded there. A damaged job is buried where it
    is: without a key nobody would ever claim it and find out.
    """
    with transaction(db):
        rows = db.execute(
            "update session set destination_id = ? where destination_id = ? and not exists"
            " (select 1 from session o where o.destination_id = ? and o.name = session.name)"
            " and (? is null or root_name = ?) returning id",
            (destination_id, keyless_id, destination_id, session, session),
        ).fetchall()
        moved = 0
        for row in rows:
            moved += db.execute(
                "update job set destination_id = ? where session_id = ?", (destination_id, row["id"])
            ).rowcount
    while waiting := db.execute(
        "select j.id, j.key, j.facts_ms, t.name as turn, s.name as session, s.root_name, s.user_id, s.folder"
        " from job j join turn t on t.id = j.turn_id join session s on s.id = j.session_id"
        " where j.destination_id = ? and j.state = 'pending' and j.lease_until_ms is null"
        " and (? is null or s.root_name = ?) order by j.id limit ?",
        (keyless_id, session, session, BATCH),
    ).fetchall():
        for row in waiting:
            _adopt_job(db, destination_id, row, now_ms)
        moved += len(waiting)
    return moved


def _adopt_job(db: sqlite3.Connection, destination_id: int, row: sqlite3.Row, now_ms: int) -> None:
    """pending -> superseded, once the destination has it; or pending -> dead, when it is damaged."""
    version = Version(
        session=row["session"],
        root=row["root_name"],
        turn=row["turn"],
        key=row["key"],
        facts_ms=row["facts_ms"],
        user_id=row["user_id"],
        folder=row["folder"],
    )
    try:
        bodies = _bodies(db, row["id"], row["key"])
    except LedgerError as error:
        db.execute(
            "update job set state = 'dead', due_ms = null, finished_ms = ?, error = ?"
            " where id = ? and state = 'pending'",
            (now_ms, str(error), row["id"]),
        )
        return
    insert(db, destination_id, version, bodies, now_ms=now_ms)
    with transaction(db):
        _supersede_where(db, "id = :job", {"job": row["id"]}, now_ms)


def _bodies(db: sqlite3.Connection, job_id: int, key: str) -> list[Body]:
    rows = db.execute("select request_id, digest, body from record where job_id = ? order by position", (job_id,))
    return [_read_body(row, key) for row in rows]


def _read_body(row: sqlite3.Row, key: str) -> Body:
    try:
        body = Body(uuid.UUID(bytes=row["request_id"]), zlib.decompress(row["body"]))
    except zlib.error as error:
        raise LedgerError(f"record {uuid.UUID(bytes=row['request_id'])} of job {key[:12]} is damaged") from error
    if body.digest != row["digest"]:
        raise LedgerError(f"record {body.request_id} of job {key[:12]} does not match its checksum")
    return body


# --- out: claim, acknowledge, finish ---------------------------------------------------------------------------------


def claim(
    db: sqlite3.Connection, destination_id: int, key: str, *, worker: str, now_ms: int, lease_ms: int
) -> Claim | None:
    """pending -> pending with a lease: the oldest due job of the session that `key` belongs to.

    None when there is nothing to do: not due, another job of the session is in flight, or the destination is paused
    and its next probe is not due or already running. A job in backoff does not block its successors.
    """
    with transaction(db):
        row = db.execute(
            "update job set lease_until_ms = :until, worker = :worker, attempt = attempt + 1, attempted_ms = :now"
            " where id = (select j.id from job k join job j on j.session_id = k.session_id"
            "  where k.destination_id = :destination and k.key = :key and j.state = 'pending' and j.due_ms <= :now"
            "  and not exists (select 1 from job l where l.session_id = k.session_id and l.lease_until_ms is not null)"
            "  order by j.id limit 1)"
            " and exists (select 1 from destination d where d.id = job.destination_id and d.id = :destination"
            "  and (d.pause_reason is null or d.probe_ms <= :now))"
            " and state = 'pending' and lease_until_ms is null"
            " returning id, turn_id, key, attempt, failures, session_id",
            {"until": now_ms + lease_ms, "worker": worker, "now": now_ms, "destination": destination_id, "key": key},
        ).fetchone()
        if row is None:
            return None
        # While paused the claim is the probe: the next one waits at least as long as this one may take.
        paused = db.execute(
            "update destination set probe_ms = ? where id = ? and pause_reason is not null returning pause_count",
            (now_ms + lease_ms, destination_id),
        ).fetchone()
        session = db.execute("select name from session where id = ?", (row["session_id"],)).fetchone()[0]
    return Claim(
        job_id=row["id"],
        turn_id=row["turn_id"],
        key=row["key"],
        session=session,
        attempt=row["attempt"],
        failures=row["failures"],
        paused=paused is not None,
        pause_count=0 if paused is None else paused["pause_count"],
    )


def unacknowledged(db: sqlite3.Connection, held: Claim) -> Iterator[Body]:
    """The records of a claimed job that Helicone has not said yes to, in order, one in memory at a time.

    A record equal to the last acknowledged one under its request id is done already, whichever job posted it.
    Raises LedgerError when a body does not match its checksum.
    """
    positions = db.execute(
        "select r.position from record r where r.job_id = ? and not exists (select 1 from acknowledgement a"
        " where a.turn_id = ? and a.request_id = r.request_id and a.digest = r.digest) order by r.position",
        (held.job_id, held.turn_id),
    ).fetchall()
    for (position,) in positions:
        row = db.execute(
            "select request_id, digest, body from record where job_id = ? and position = ?", (held.job_id, position)
        ).fetchone()
        if row is None:  # superseded meanwhile: the caller sees it at its next look
            return
        yield _read_body(row, held.key)


def is_current(db: sqlite3.Connection, held: Claim) -> bool:
    """Whether the claim still stands: not superseded, not dropped, not taken over by another attempt."""
    row = db.execute(
        "select 1 from job where id = ? and attempt = ? and state = 'pending' and lease_until_ms is not null",
        (held.job_id, held.attempt),
    ).fetchone()
    return row is not None


def acknowledge(db: sqlite3.Connection, held: Claim, body: Body, *, now_ms: int, lease_ms: int) -> bool:
    """Note that Helicone took this record, and renew the lease. False when the claim no longer stands.

    The note itself is not fenced: that Helicone said yes is true whoever heard it.
    """
    with transaction(db):
        db.execute(
            "insert into acknowledgement (turn_id, request_id, digest, acknowledged_ms) values (?, ?, ?, ?)"
            " on conflict do update set digest = excluded.digest, acknowledged_ms = excluded.acknowledged_ms",
            (held.turn_id, body.request_id.bytes, body.digest, now_ms),
        )
        updated = db.execute(
            "update job set lease_until_ms = ?, failures = 0"
            " where id = ? and attempt = ? and state = 'pending' and lease_until_ms is not null",
            (now_ms + lease_ms, held.job_id, held.attempt),
        )
        crashpoint.reach("acknowledge.noting")
    crashpoint.reach("acknowledge.committed")
    return updated.rowcount == 1


def complete(db: sqlite3.Connection, held: Claim, now_ms: int) -> bool:
    """pending, leased -> delivered, if every record is acknowledged.

    The bodies go; the row stays, so that the key is never sent again.
    """
    with transaction(db):
        updated = db.execute(
            "update job set state = 'delivered', due_ms = null, lease_until_ms = null, worker = null, finished_ms = ?,"
            " error = null, body_bytes = 0"
            " where id = ? and attempt = ? and state = 'pending' and lease_until_ms is not null"
            " and not exists (select 1 from record r where r.job_id = job.id and not exists (select 1"
            "  from acknowledgement a where a.turn_id = job.turn_id and a.request_id = r.request_id"
            "  and a.digest = r.digest))",
            (now_ms, held.job_id, held.attempt),
        )
        if updated.rowcount == 1:
            db.execute("delete from record where job_id = ?", (held.job_id,))
        crashpoint.reach("complete.finishing")
    crashpoint.reach("complete.committed")
    return updated.rowcount == 1


def bury(db: sqlite3.Connection, held: Claim, now_ms: int, error: str) -> bool:
    """pending, leased -> dead. Its records stay for whoever looks into it."""
    updated = db.execute(
        "update job set state = 'dead', due_ms = null, lease_until_ms = null, worker = null, finished_ms = ?, error = ?"
        " where id = ? and attempt = ? and state = 'pending' and lease_until_ms is not null",
        (now_ms, error, held.job_id, held.attempt),
    )
    return updated.rowcount == 1


def retry(db: sqlite3.Connection, held: Claim, *, due_ms: int, error: str) -> bool:
    """pending, leased -> pending: this attempt failed and is charged."""
    return _let_go(db, held, due_ms=due_ms, error=error, charge=1)


def give_back(db: sqlite3.Connection, held: Claim, *, due_ms: int, error: str | None = None) -> bool:
    """pending, leased -> pending: the attempt says nothing about the job and is not charged."""
    return _let_go(db, held, due_ms=due_ms, error=error, charge=0)


def _let_go(db: sqlite3.Connection, held: Claim, *, due_ms: int, error: str | None, charge: int) -> bool:
    updated = db.execute(
        "update job set lease_until_ms = null, worker = null, due_ms = ?, error = coalesce(?, error),"
        " failures = failures + ?, rung_ms = null"
        " where id = ? and attempt = ? and state = 'pending' and lease_until_ms is not null",
        (due_ms, error, charge, held.job_id, held.attempt),
    )
    return updated.rowcount == 1


def abandon(db: sqlite3.Connection, held: Claim) -> bool:
    """superseded or dropped, leased -> the same without the lease: the worker saw that its job is no longer wanted."""
    updated = db.execute(
        "update job set lease_until_ms = null, worker = null where id = ? and attempt = ? and state <> 'pending'"
        " and lease_until_ms is not null",
        (held.job_id, held.attempt),
    )
    return updated.rowcount == 1


def give_back_all(db: sqlite3.Connection, worker: str) -> int:
    """leased by this worker -> not leased, uncharged: it was told to stop and lets everything go."""
    updated = db.execute(
        "update job set lease_until_ms = null, worker = null, rung_ms = null"
        " where lease_until_ms is not null and worker = ?",
        (worker,),
    )
    return updated.rowcount


# --- watch and prune -------------------------------------------------------------------------------------------------


def leasing_workers(db: sqlite3.Connection) -> list[str]:
    rows = db.execute("select distinct worker from job where lease_until_ms is not null limit ?", (BATCH,)).fetchall()
    return [row["worker"] for row in rows]


def recover(db: sqlite3.Connection, now_ms: int, dead_workers: Collection[str] = ()) -> int:
    """leased, but the lease ran out or its worker is dead -> due at once, or dead after KILLS_MAX of these."""
    workers = json.dumps(sorted(dead_workers))
    orphaned = (
        "lease_until_ms is not null and (lease_until_ms <= :now or worker in (select value from json_each(:workers)))"
    )
    arguments = {"now": now_ms, "workers": workers, "kills": KILLS_MAX - 1, "limit": BATCH}
    if db.execute(f"select 1 from job where {orphaned} limit 1", arguments).fetchone() is None:
        return 0
    with transaction(db):
        buried = db.execute(
            "update job set state = 'dead', due_ms = null, lease_until_ms = null, worker = null, finished_ms = :now,"
            f" kills = kills + 1, error = 'its worker was killed {KILLS_MAX} times'"
            f" where id in (select id from job where {orphaned} limit :limit)"
            " and +state = 'pending' and kills >= :kills",  # the plus: by id, not among all that is pending
            arguments,
        ).rowcount
        freed = db.execute(
            "update job set lease_until_ms = null, worker = null, rung_ms = null,"
            " kills = kills + (state = 'pending'), due_ms = iif(state = 'pending', :now, null)"
            f" where id in (select id from job where {orphaned} limit :limit)",
            arguments,
        ).rowcount
        crashpoint.reach("recover.freeing")
    return buried + freed


def to_ring(db: sqlite3.Connection, destination_id: int, now_ms: int, limit: int) -> list[str]:
    """Keys of due jobs, one per session, of sessions that no ring is under way for; marks them as rung.

    While the destination is paused: one key, when its probe is due.
    """
    arguments = {"destination": destination_id, "now": now_ms, "again": now_ms - RING_AGAIN_MS}
    paused = db.execute(
        "select pause_reason is not null from destination"
        " where id = :destination and (pause_reason is null or probe_ms <= :now)",
        arguments,
    ).fetchone()
    if paused is None:
        return []
    # A ring from the future was made before the clock was set back: it is not under way.
    found = db.execute(
        "select min(id) from job where destination_id = :destination and state = 'pending' and due_ms <= :now"
        " and not exists (select 1 from job l where l.session_id = job.session_id and l.lease_until_ms is not null)"
        " group by session_id having not max(coalesce(rung_ms > :again and rung_ms <= :now, 0)) limit :limit",
        {**arguments, "limit": 1 if paused[0] else limit},
    ).fetchall()
    if not found:
        return []
    rows = db.execute(
        "update job set rung_ms = :now where id in (select value from json_each(:jobs))"
        " and +state = 'pending' and (rung_ms is null or rung_ms <= :again or rung_ms > :now) returning key",
        {**arguments, "jobs": json.dumps([row[0] for row in found])},
    ).fetchall()
    return [row["key"] for row in rows]


def forget_rings(db: sqlite3.Connection, destination_id: int) -> int:
    """Take no ring for under way: those who had them have died, or answered them while the destination was paused."""
    updated = db.execute(
        "update job set rung_ms = null where destination_id = ? and state = 'pending' and rung_ms is not null",
        (destination_id,),
    )
    return updated.rowcount


def next_due_ms(db: sqlite3.Connection, destination_id: int, now_ms: int) -> int | None:
    """When the next job in backoff becomes due, None when none waits for a time."""
    row = db.execute(
        "select min(due_ms) from job where destination_id = ? and state = 'pending' and due_ms > ?",
        (destination_id, now_ms),
    ).fetchone()
    return None if row[0] is None else int(row[0])


def next_of_session(db: sqlite3.Connection, destination_id: int, session: str, now_ms: int) -> str | None:
    """The key of the session's oldest due job."""
    row = db.execute(
        "select j.key from session s join job j on j.session_id = s.id and j.state = 'pending' and j.due_ms <= ?"
        " where s.destination_id = ? and s.name = ? order by j.id limit 1",
        (now_ms, destination_id, session),
    ).fetchone()
    return None if row is None else str(row["key"])


def drop_aged(db: sqlite3.Connection, now_ms: int, age_ms_max: int) -> int:
    """pending -> dropped (age), at most BATCH: enqueued longer than `age_ms_max` ago and tried since it came of age.

    A laptop that slept for a month must try once before it gives up.
    """
    return _drop(
        db,
        "age",
        now_ms,
        "state = 'pending' and enqueued_ms < :before and enqueued_ms + :age <= max(coalesce(attempted_ms, 0),"
        " (select coalesce(d.probed_ms, 0) from destination d where d.id = job.destination_id))",
        {"before": now_ms - age_ms_max, "age": age_ms_max},
    )


def drop_oversize(db: sqlite3.Connection, now_ms: int, bytes_max: int) -> int:
    """pending or dead -> dropped (size), oldest first, at most BATCH, until the held bodies fit into `bytes_max`.

    What is in flight stays, and others go in its place.
    """
    held = int(db.execute("select coalesce(sum(body_bytes), 0) from job where body_bytes > 0").fetchone()[0])
    if held <= bytes_max:
        return 0
    return _drop(
        db,
        "size",
        now_ms,
        "id in (select id from (select id, sum(body_bytes) over (order by enqueued_ms, id) - body_bytes as older"
        " from job where body_bytes > 0 and lease_until_ms is null) where older < :excess)",
        {"excess": held - bytes_max},
    )


def drop_session(db: sqlite3.Connection, destination_id: int, session: str, now_ms: int) -> int:
    """pending or dead -> dropped (deleted): the session was deleted in OpenCode before it was delivered."""
    dropped = 0
    while batch := _drop(
        db,
        "deleted",
        now_ms,
        "state in ('pending', 'dead') and session_id in"
        " (select id from session where destination_id = :destination and name = :session)",
        {"destination": destination_id, "session": session},
        leased_too=True,
    ):
        dropped += batch
    return dropped


def _drop(
    db: sqlite3.Connection,
    reason: str,
    now_ms: int,
    condition: str,
    arguments: dict[str, object],
    *,
    leased_too: bool = False,
) -> int:
    free = "1" if leased_too else "lease_until_ms is null"
    with transaction(db):
        rows = db.execute(
            "update job set state = 'dropped', drop_reason = :reason, due_ms = null, finished_ms = :now, body_bytes = 0"
            f" where id in (select id from job where ({condition}) and {free} order by enqueued_ms, id limit :limit)"
            # The plus keeps SQLite from looking for them among all that is pending.
            " and +state in ('pending', 'dead') returning id",
            {**arguments, "reason": reason, "now": now_ms, "limit": BATCH},
        ).fetchall()
        db.executemany("delete from record where job_id = ?", [(row["id"],) for row in rows])
        crashpoint.reach("prune.dropping")
    return len(rows)


def shrink(db: sqlite3.Connection) -> None:
    """Give pages of deleted bodies back to the file system, a bounded number at a time."""
    # `execute` would step only once, and each step frees one page.
    db.executescript("pragma incremental_vacuum(1000)")


# --- reading ---------------------------------------------------------------------------------------------------------


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
    """Of one destination, or of all."""
    rows = db.execute(
        "select state, drop_reason, count(*) as jobs, sum(lease_until_ms is not null) as leased,"
        " sum(failures > 0) as failed, min(enqueued_ms) as oldest_ms, sum(body_bytes) as body_bytes"
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


def errors(db: sqlite3.Connection, destination_id: int, limit: int = 5) -> list[tuple[str, str, int]]:
    """(state, error, jobs) of what is dead or waits after a failure, most frequent first."""
    rows = db.execute(
        "select state, error, count(*) as jobs from job where destination_id = ? and error is not null"
        " and state in ('pending', 'dead') group by state, error order by jobs desc, error limit ?",
        (destination_id, limit),
    ).fetchall()
    return [(row["state"], row["error"], row["jobs"]) for row in rows]


def is_pending(db: sqlite3.Connection, destination_id: int) -> bool:
    """Whether anything waits, however long it will have to."""
    row = db.execute(
        "select 1 from job where destination_id = ? and state = 'pending' limit 1", (destination_id,)
    ).fetchone()
    return row is not None


def sendable(db: sqlite3.Connection, destination_id: int, now_ms: int) -> bool:
    """Whether a worker has something to do now or soon: a pending job at a destination that is not paused."""
    row = db.execute(
        "select 1 from job j join destination d on d.id = j.destination_id where j.destination_id = ?"
        " and j.state = 'pending' and (d.pause_reason is null or d.probe_ms <= ?) limit 1",
        (destination_id, now_ms),
    ).fetchone()
    return row is not None
