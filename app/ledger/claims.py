"""Out: a worker claims a job, acknowledges its records one by one, and finishes it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

from app.database.connection import transaction
from app.ledger import flow
from app.ledger.job import Body, Claim, Failure, LedgerError, bodies
from app.ledger.versions import forget_contents
from app.runtime import failpoint

ISOLATED_KILLS = 2
"""A job that so many workers died with is claimed only alone, so that none of its neighbours dies with it again."""
ATTEMPTS_KEPT = 10

# Of the session that a key belongs to. A job in backoff does not block its successors.
_DUE_OF_SESSION = """
    select j.id from job k join job j on j.session_id = k.session_id
    where k.destination_id = :destination and k.key = :key and j.state = 'pending' and j.due_ms <= :now
      and not exists (select 1 from job l where l.session_id = k.session_id and l.lease_until_ms is not null)
      and (j.kills >= :isolated or not exists (select 1 from job i where i.destination_id = :destination
        and i.state = 'pending' and i.kills >= :isolated and i.due_ms <= :now))"""
# The oldest due job that is live, else the oldest due. (Two questions: one order by both would sort all that is due.)
_OF_SESSION = f"""
    coalesce(({_DUE_OF_SESSION} and j.is_history = 0 order by j.id limit 1),
      ({_DUE_OF_SESSION} order by j.id limit 1))"""
# The oldest due job of the session that was not asked about for the longest time: probes take turns.
_OF_ANY_SESSION = """
    select id from (
      select min(j.id) as id, j.attempted_ms from job j
      where j.destination_id = :destination and j.state = 'pending' and j.due_ms <= :now
        and not exists (select 1 from job l where l.session_id = j.session_id and l.lease_until_ms is not null)
      group by j.session_id)
    order by coalesce(attempted_ms, 0), id limit 1"""


# A second opinion: one bad record at the head of a session must not be all that a probe ever asks about.
_OF_ANY_JOB = """
    select j.id from job j where j.destination_id = :destination and j.state = 'pending' and j.due_ms <= :now
      and not exists (select 1 from job l where l.session_id = j.session_id and l.lease_until_ms is not null)
    order by coalesce(j.attempted_ms, 0), j.id limit 1"""


def claim(
    db: sqlite3.Connection, destination_id: int, key: str, *, worker: str, now_ms: int, lease_ms: int
) -> Claim | None:
    """pending -> pending with a lease: the oldest due job of the session that `key` belongs to; history goes last.

    While the destination is paused and its probe is due, it is the job of any session whose turn it is. None when
    there is nothing to do: not due, another job of the session is in flight, or the destination takes no more now.
    """
    with transaction(db):
        terms = flow.terms(db, destination_id, now_ms)
        if terms is None:
            return None
        arguments = {"destination": destination_id, "key": key, "now": now_ms, "isolated": ISOLATED_KILLS}
        candidates = _OF_SESSION
        if terms.is_probe:
            candidates = _OF_ANY_JOB if terms.asks_another else _OF_ANY_SESSION
        row = db.execute(
            # Whether it must still be held its worker asks: no finish needs to know that it once was.
            "update job set lease_until_ms = :until, worker = :worker, attempt = attempt + 1, attempted_ms = :now,"
            " hold_reason = null"
            f" where id = ({candidates}) and destination_id = :destination and state = 'pending'"
            " and lease_until_ms is null"
            # Alone, whoever is suspected of killing workers; and beside it nobody. (The plus: among what is leased, and
            # not among all jobs of the destination.)
            " and not exists (select 1 from job l where l.lease_until_ms is not null"
            "  and +l.destination_id = :destination and (job.kills >= :isolated or l.kills >= :isolated))"
            " returning id, turn_id, key, attempt, setbacks, failures, session_id, policy_id",
            {**arguments, "until": now_ms + lease_ms, "worker": worker},
        ).fetchone()
        if row is None:
            return None
        if terms.is_probe:
            # The next one waits at least as long as this one may take.
            flow.await_probe(db, destination_id, now_ms + lease_ms)
        _begin_attempt(db, row["id"], row["attempt"], now_ms)
        beside = db.execute(
            "select s.name, t.name as turn, s.folder, p.facts from session s join turn t on t.id = ?"
            " left join policy p on p.id = ? where s.id = ?",
            (row["turn_id"], row["policy_id"], row["session_id"]),
        ).fetchone()
    return Claim(
        job_id=row["id"],
        turn_id=row["turn_id"],
        key=row["key"],
        session=beside["name"],
        turn=beside["turn"],
        folder=beside["folder"],
        policy=beside["facts"] or "",
        attempt=row["attempt"],
        setbacks=row["setbacks"],
        failures=row["failures"],
        is_probe=terms.is_probe,
        is_another=terms.asks_another,
        pause_count=terms.pause_count,
    )


def _begin_attempt(db: sqlite3.Connection, job_id: int, number: int, now_ms: int) -> None:
    db.execute("insert into attempt (job_id, number, started_ms) values (?, ?, ?)", (job_id, number, now_ms))
    # By their count: claims that were held have left no attempt, and an old one must not go for their sake.
    db.execute(
        "delete from attempt where job_id = ?1 and number not in"
        " (select number from attempt where job_id = ?1 order by number desc limit ?2)",
        (job_id, ATTEMPTS_KEPT),
    )


def _end_attempt(db: sqlite3.Connection, held: Claim, now_ms: int, failure: Failure) -> None:
    db.execute(
        "update attempt set ended_ms = ?, status = ?, error = ?, answer = ? where job_id = ? and number = ?",
        (now_ms, failure.status, failure.error, failure.answer or None, held.job_id, held.attempt),
    )


def unacknowledged(db: sqlite3.Connection, held: Claim, made: Sequence[Body] | None = None) -> Iterator[Body]:
    """The records of a claimed job that Helicone has not said yes to, in order, one in memory at a time.

    A record equal to the last acknowledged one under its request id is done already, whichever job posted it. `made`
    are all bodies of a job that gave its own up, made again.
    Raises LedgerError when a body does not match its checksum, or when records are missing.
    """
    (missing,) = db.execute(
        "select record_count - (select count(*) from record where job_id = job.id) from job where id = ?",
        (held.job_id,),
    ).fetchone()
    if missing > 0 and is_current(db, held):
        raise LedgerError(f"{missing} record(s) of job {held.key[:12]} are missing")
    positions = db.execute(
        "select r.position from record r where r.job_id = ? and not exists (select 1 from acknowledgement a"
        " where a.turn_id = ? and a.request_id = r.request_id and a.digest = r.digest)",
        (held.job_id, held.turn_id),
    ).fetchall()
    left = {row["position"] for row in positions}
    if made is not None:
        yield from (made[position] for position in sorted(left))
    elif left:
        yield from bodies(db, held.job_id, held.key, lambda row: row["position"] in left)


def is_current(db: sqlite3.Connection, held: Claim) -> bool:
    """Whether the claim still stands: not superseded, not dropped, not taken over by another attempt."""
    row = db.execute(
        "select 1 from job where id = ? and attempt = ? and state = 'pending' and lease_until_ms is not null",
        (held.job_id, held.attempt),
    ).fetchone()
    return row is not None


def is_alone(db: sqlite3.Connection, destination_id: int, held: Claim) -> bool:
    """Whether no other job waits for this destination: then nobody else can show whether it is there."""
    row = db.execute(
        "select 1 from job where destination_id = ? and state = 'pending' and id <> ? and hold_reason is null limit 1",
        (destination_id, held.job_id),
    ).fetchone()
    return row is None


def acknowledge(
    db: sqlite3.Connection, destination_id: int, held: Claim, body: Body, *, now_ms: int, lease_ms: int
) -> bool:
    """Note that Helicone took this record, and renew the lease. False when the claim no longer stands.

    The note itself is not fenced: that Helicone said yes is true whoever heard it.
    """
    with transaction(db):
        db.execute(
            "insert into acknowledgement (turn_id, request_id, digest, acknowledged_ms) values (?, ?, ?, ?)"
            " on conflict do update set digest = excluded.digest, acknowledged_ms = excluded.acknowledged_ms",
            (held.turn_id, body.request_id.bytes, body.digest, now_ms),
        )
        passes = flow.passed(db, destination_id)
        updated = db.execute(
            "update job set lease_until_ms = ?, setbacks = 0, failures = 0, passes_seen = ?"
            " where id = ? and attempt = ? and state = 'pending' and lease_until_ms is not null",
            (now_ms + lease_ms, passes, held.job_id, held.attempt),
        )
        failpoint.reach("acknowledge.noting")
    failpoint.reach("acknowledge.committed")
    return updated.rowcount == 1


def complete(db: sqlite3.Connection, held: Claim, now_ms: int, *, confirm_ms: int | None = None) -> bool:
    """pending, leased -> delivered, if every record is acknowledged.

    The bodies go, unless the job is to be confirmed at `confirm_ms`; the row stays, so that the key is never sent
    again.
    """
    with transaction(db):
        updated = db.execute(
            "update job set state = 'delivered', due_ms = null, lease_until_ms = null, worker = null, error = null,"
            " finished_ms = :now, confirm_ms = :confirm, body_bytes = iif(:confirm is null, 0, body_bytes)"
            " where id = :job and attempt = :attempt and state = 'pending' and lease_until_ms is not null"
            " and not exists (select 1 from record r where r.job_id = job.id and not exists (select 1"
            "  from acknowledgement a where a.turn_id = job.turn_id and a.request_id = r.request_id"
            "  and a.digest = r.digest))",
            {"now": now_ms, "confirm": confirm_ms, "job": held.job_id, "attempt": held.attempt},
        )
        if updated.rowcount == 1:
            db.execute(
                "update attempt set ended_ms = ?, status = 200, error = 'accepted' where job_id = ? and number = ?",
                (now_ms, held.job_id, held.attempt),
            )
            if confirm_ms is None:
                forget_contents(db, [held.job_id])
        failpoint.reach("complete.finishing")
    failpoint.reach("complete.committed")
    return updated.rowcount == 1


def bury(db: sqlite3.Connection, held: Claim, now_ms: int, failure: Failure) -> bool:
    """pending, leased -> dead. Its records stay for whoever looks into it."""
    with transaction(db):
        updated = db.execute(
            "update job set state = 'dead', due_ms = null, lease_until_ms = null, worker = null, finished_ms = ?,"
            " error = ? where id = ? and attempt = ? and state = 'pending' and lease_until_ms is not null",
            (now_ms, failure.error, held.job_id, held.attempt),
        )
        _end_attempt(db, held, now_ms, failure)
    return updated.rowcount == 1


def set_back(
    db: sqlite3.Connection, held: Claim, *, now_ms: int, due_ms: int, failure: Failure, passes: int, charged: bool
) -> bool:
    """pending, leased -> pending, due later. `charged`: the failure is the job's own.

    `passes` is what the destination has accepted by now: another failure without a pass in between says nothing new.
    """
    with transaction(db):
        updated = db.execute(
            "update job set lease_until_ms = null, worker = null, due_ms = ?, error = ?, rung_ms = null,"
            " setbacks = setbacks + 1, failures = failures + ?, passes_seen = ?"
            " where id = ? and attempt = ? and state = 'pending' and lease_until_ms is not null",
            (due_ms, failure.error, charged, passes, held.job_id, held.attempt),
        )
        _end_attempt(db, held, now_ms, failure)
    return updated.rowcount == 1


def give_back(db: sqlite3.Connection, held: Claim, *, due_ms: int, failure: Failure | None = None) -> bool:
    """pending, leased -> pending: the attempt says nothing about the job."""
    with transaction(db):
        updated = db.execute(
            "update job set lease_until_ms = null, worker = null, rung_ms = null, due_ms = ?,"
            " error = coalesce(?, error)"
            " where id = ? and attempt = ? and state = 'pending' and lease_until_ms is not null",
            (due_ms, failure.error if failure else None, held.job_id, held.attempt),
        )
        _end_attempt(db, held, due_ms, failure or Failure("not tried: the worker was told to stop"))
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
