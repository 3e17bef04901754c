"""Claims: a worker claims the next due job by a lease, acknowledges its records, and finishes or releases it."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from app.database.connection import Database, Row, lock, transaction, unflushed
from app.ledger import counters, flow
from app.ledger.flow import Paused, Terms
from app.ledger.job import Accepted, Body, Claim, FailedAttempt, LedgerError, bodies
from app.ledger.versions import forget_contents
from app.runtime import failpoint

ISOLATED_KILLS = 2
"""A job that so many workers died with is claimed only alone, so that none of its neighbours dies with it again."""
ATTEMPTS_KEPT = 10

ISOLATED_DUE = (
    # A number, no parameter: only so does SQLite use the index of these few.
    f"j.destination_id = :destination and j.state = 'pending' and j.kills >= {ISOLATED_KILLS} and j.due_ms <= :now"
)
"""Of jobs `j`: what is due and must be alone. While there is such a job, no other is claimed."""
IS_FREE = "not exists (select 1 from job l where l.session_id = {of}.session_id and l.lease_until_ms is not null)"
"""Nothing of its session is in flight."""
FIRST_DUE = (
    "select {column} from job j where j.session_id = w.session_id and j.is_history = w.is_history"
    " and j.state = 'pending' and j.due_ms = w.due_ms order by j.id limit 1"
)
"""Of a row `w` of what waits: the job that it tells of."""

_OF_SESSION = (
    "select j.id, j.due_ms from job j where j.state = 'pending' and j.is_history = {is_history}"
    " and j.session_id = (select session_id from job where destination_id = :destination and key = :key)"
)
# The oldest; while that is in backoff, what has been due for the longest time. (Two questions, because each is one look
# into an index: the oldest of those that are due may stand behind any number that are not.)
_NEXT_OF_KIND = (
    f"(select id from ({_OF_SESSION} order by j.id limit 1) oldest where due_ms <= :now),"
    f" (select id from ({_OF_SESSION} and j.due_ms <= :now order by j.due_ms, j.id limit 1) longest)"
)
_NEXT_OF_SESSION = f"select coalesce({_NEXT_OF_KIND.format(is_history=0)}, {_NEXT_OF_KIND.format(is_history=1)})"
_NEXT_ISOLATED = (
    f"select j.id from job k join job j on j.session_id = k.session_id where k.destination_id = :destination"
    f" and k.key = :key and {ISOLATED_DUE} order by j.is_history, j.id limit 1"
)
_FIRST_WAITING = (
    "select * from (select * from waiting where destination_id = :destination and is_history = {is_history}"
    f" and due_ms <= :now and {IS_FREE.format(of='waiting')} order by due_ms, session_id limit 1) waits"
)
# One bad record must not be all that probes ever ask about: what was asked about in vain is due from then on, and so
# goes behind all that waited already. It goes behind what has come since as well, if that is not tried yet.
_LONGEST_DUE = (
    "select j.id, j.attempted_ms from"
    f" ({_FIRST_WAITING.format(is_history=0)} union all {_FIRST_WAITING.format(is_history=1)}) w"
    f" join job j on j.id = ({FIRST_DUE.format(column='j.id')}) order by w.due_ms, w.is_history limit 1"
)
_NEWEST_IF_UNTRIED = (
    "select id from (select * from job j where j.destination_id = :destination and j.state = 'pending'"
    " order by j.enqueued_ms desc, j.id desc limit 1) j"
    f" where attempted_ms is null and due_ms <= :now and {IS_FREE.format(of='j')}"
)


def claim(db: Database, destination_id: int, key: str, *, worker: str, now_ms: int, lease_ms: int) -> Claim | None:
    """pending -> pending with a lease: the oldest job of the session that `key` belongs to; history goes last.

    While the oldest is in backoff it is the one that has been due for the longest time; and while the destination is
    paused and its probe is due, the one of all sessions that has; or the newest, where that one was tried before and
    the newest was not. None when there is nothing to do: not due, another job of the session is in flight, or the
    destination takes no more now.
    """
    arguments = {"destination": destination_id, "key": key, "now": now_ms}
    try:
        with transaction(db):
            terms, is_isolated = _terms(db, destination_id, now_ms)
            if terms is not None and (terms.room is not None or is_isolated):
                # So many only: whoever claims counts what those before have claimed.
                lock(db, f"claims of destination {destination_id}")
                terms, is_isolated = _terms(db, destination_id, now_ms)
            if terms is None:
                return None
            if terms.is_probe:
                candidate = _to_probe(db, arguments)
            else:
                candidate = _first(db, _NEXT_ISOLATED if is_isolated else _NEXT_OF_SESSION, arguments)
            row = _lease(db, candidate, arguments, worker, now_ms + lease_ms)
            if row is None:
                return None
            if terms.is_probe:
                # The next one waits at least as long as this one may take.
                flow.await_probe(db, destination_id, now_ms + lease_ms)
            _begin_attempt(db, row["id"], row["attempt"], now_ms)
            return _read(db, row, terms)
    except sqlite3.IntegrityError as error:
        # Where many write at once, another job of the session was leased between the look and the lease, and the index
        # is unique. SQLite's is not: its one writer has looked, and nobody comes between.
        if error.sqlite_errorname != "job_leased":
            raise
        return None


def _terms(db: Database, destination_id: int, now_ms: int) -> tuple[Terms | None, bool]:
    """And whether a job is due that must be alone."""
    terms = flow.terms(db, destination_id, now_ms)
    return terms, terms is not None and is_isolated_due(db, destination_id, now_ms)


def _lease(db: Database, job_id: int | None, arguments: Mapping[str, object], worker: str, until_ms: int) -> Row | None:
    row: Row | None = db.execute(
        # Whether it must still be held its worker asks: no finish needs to know that it once was.
        "update job set lease_until_ms = :until, worker = :worker, attempt = attempt + 1, attempted_ms = :now,"
        " hold_reason = null"
        # Once more what the candidate was chosen by: it may have been claimed, put off or adopted since.
        " where id = :job and state = 'pending' and lease_until_ms is null and due_ms <= :now"
        f" and destination_id = :destination and {IS_FREE.format(of='job')}"
        # Alone, whoever is suspected of killing workers; and beside it nobody. (The plus: among what is leased, and
        # not among all jobs of the destination.)
        " and not exists (select 1 from job l where l.lease_until_ms is not null"
        f"  and +l.destination_id = :destination and max(job.kills, l.kills) >= {ISOLATED_KILLS})"
        " returning id, destination_id, turn_id, key, attempt, setbacks, failures, session_id, policy_id, facts_ms",
        {**arguments, "job": job_id, "until": until_ms, "worker": worker},
    ).fetchone()
    return row


def _first(db: Database, which: str, arguments: Mapping[str, object]) -> int | None:
    row = db.execute(which, arguments).fetchone()
    return None if row is None else row[0]


def _to_probe(db: Database, arguments: Mapping[str, object]) -> int | None:
    longest = db.execute(_LONGEST_DUE, arguments).fetchone()
    if longest is None or longest["attempted_ms"] is None:
        return longest and int(longest["id"])
    return _first(db, _NEWEST_IF_UNTRIED, arguments) or int(longest["id"])


def is_isolated_due(db: Database, destination_id: int, now_ms: int) -> bool:
    """Whether anything is due that must be alone, and so keeps all else back."""
    row = db.execute(
        f"select 1 from job j where {ISOLATED_DUE} limit 1", {"destination": destination_id, "now": now_ms}
    ).fetchone()
    return row is not None


def _read(db: Database, row: Row, terms: Terms) -> Claim:
    beside = db.execute(
        "select s.name, t.name as turn, s.folder, p.facts from session s join turn t on t.id = ?"
        " left join policy p on p.id = ? where s.id = ?",
        (row["turn_id"], row["policy_id"], row["session_id"]),
    ).fetchone()
    return Claim(
        destination_id=row["destination_id"],
        job_id=row["id"],
        turn_id=row["turn_id"],
        key=row["key"],
        session=beside["name"],
        turn=beside["turn"],
        folder=beside["folder"],
        policy=beside["facts"] or "",
        last_event_ms=row["facts_ms"],
        attempt=row["attempt"],
        consecutive_failures=row["setbacks"],
        failures=row["failures"],
        is_probe=terms.is_probe,
        pause_count=terms.pause_count,
    )


def _begin_attempt(db: Database, job_id: int, number: int, now_ms: int) -> None:
    db.execute("insert into attempt (job_id, number, started_ms) values (?, ?, ?)", (job_id, number, now_ms))
    # By their count: claims that were held have left no attempt, and an old one must not go for their sake.
    db.execute(
        "delete from attempt where job_id = :job and number not in"
        " (select number from attempt where job_id = :job order by number desc limit :kept)",
        {"job": job_id, "kept": ATTEMPTS_KEPT},
    )


def acknowledged(db: Database, claim: Claim) -> dict[uuid.UUID, bytes]:
    """By request id, the digest of what Helicone took last of the claim's turn."""
    rows = db.execute("select request_id, digest from acknowledgement where turn_id = ?", (claim.turn_id,))
    return {uuid.UUID(bytes=row["request_id"]): row["digest"] for row in rows}


def was_sent_otherwise(db: Database, claim: Claim) -> bool:
    """Whether another version of the claim's turn may be at the destination."""
    row = db.execute(
        "select 1 from job where turn_id = ? and id <> ? and attempt > 0 limit 1", (claim.turn_id, claim.job_id)
    ).fetchone()
    return row is not None


def forget_acknowledged(db: Database, claim: Claim) -> None:
    """leased -> leased: nothing of the turn is at the destination any more, so all of its records are posted."""
    with unflushed(db), transaction(db):
        db.execute(
            "delete from acknowledgement where turn_id = ? and exists (select 1 from job where id = ? and attempt = ?"
            " and state = 'pending' and lease_until_ms is not null)",
            (claim.turn_id, claim.job_id, claim.attempt),
        )


def unacknowledged(db: Database, claim: Claim, made: Sequence[Body] | None = None) -> Iterator[Body]:
    """The records of a claimed job that Helicone has not said yes to, in order, one in memory at a time.

    A record equal to the last acknowledged one under its request id is done already, whichever job posted it. `made`
    are all bodies of a job that gave its own up, made again.
    Raises LedgerError when a body does not match its checksum, or when records are missing.
    """
    (missing,) = db.execute(
        "select record_count - (select count(*) from record where job_id = job.id) from job where id = ?",
        (claim.job_id,),
    ).fetchone()
    if missing > 0 and is_current(db, claim):
        raise LedgerError(f"{missing} record(s) of job {claim.key[:12]} are missing")
    positions = db.execute(
        "select r.position from record r where r.job_id = ? and not exists (select 1 from acknowledgement a"
        " where a.turn_id = ? and a.request_id = r.request_id and a.digest = r.digest)",
        (claim.job_id, claim.turn_id),
    ).fetchall()
    left = {row["position"] for row in positions}
    if made is not None:
        yield from (made[position] for position in sorted(left))
    elif left:
        yield from bodies(db, claim.job_id, claim.key, lambda row: row["position"] in left)


def is_current(db: Database, claim: Claim) -> bool:
    """Whether the claim still stands: not superseded, not dropped, not taken over by another attempt."""
    row = db.execute(
        "select 1 from job where id = ? and attempt = ? and state = 'pending' and lease_until_ms is not null",
        (claim.job_id, claim.attempt),
    ).fetchone()
    return row is not None


def acknowledge(db: Database, claim: Claim, accepted: Sequence[Accepted], *, now_ms: int, lease_ms: int) -> bool:
    """Note that Helicone took these records, and renew the lease. False when the claim no longer stands.

    The notes themselves are not fenced: that Helicone said yes is true whoever heard it. They do not wait for the disk:
    one that the machine's death undoes costs another sending under the same id.
    """
    with unflushed(db), transaction(db):
        is_current = _note(db, claim, accepted, now_ms + lease_ms)
        flow.passed(db, claim.destination_id, len(accepted))
        failpoint.reach("acknowledge.noting")
    failpoint.reach("acknowledge.committed")
    return is_current


def _note(db: Database, claim: Claim, accepted: Sequence[Accepted], lease_until_ms: int | None) -> bool:
    """The caller counts them, as the last thing that it does: until its commit all others wait who count there."""
    updated = db.execute(
        "update job set lease_until_ms = coalesce(:until, lease_until_ms), setbacks = 0, failures = 0,"
        # Without what others count meanwhile: that they were accepted is news to this job.
        " passes_seen = (select passes from destination where id = :destination) + :records"
        " where id = :job and attempt = :attempt and state = 'pending' and lease_until_ms is not null",
        {
            "until": lease_until_ms,
            "destination": claim.destination_id,
            "records": len(accepted),
            "job": claim.job_id,
            "attempt": claim.attempt,
        },
    )
    is_current = updated.rowcount == 1
    for one in accepted:
        written = db.execute(
            "insert into acknowledgement (turn_id, request_id, digest, acknowledged_ms) values (?, ?, ?, ?)"
            " on conflict (turn_id, request_id) do update"
            " set digest = excluded.digest, acknowledged_ms = excluded.acknowledged_ms"
            " where acknowledgement.digest in (excluded.digest, ?)",
            (claim.turn_id, one.request_id.bytes, one.digest, one.accepted_ms, one.before),
        )
        if written.rowcount == 0:
            # Another attempt has noted it meanwhile. Whose bytes arrived last nobody knows, so they are posted again.
            db.execute(
                "delete from acknowledgement where turn_id = ? and request_id = ?",
                (claim.turn_id, one.request_id.bytes),
            )
    return is_current


def finish(db: Database, claim: Claim, changes: str, arguments: Mapping[str, object], condition: str = "1 = 1") -> bool:
    """End a claim in the caller's transaction: the lease goes, and what becomes of the job is written.

    False when the claim no longer stands, or the job is not as `condition` says: another attempt has the job, or it is
    superseded or dropped. Of the latter the lease goes all the same: its session waits for that.
    """
    fence = "id = :job and attempt = :attempt and lease_until_ms is not null"
    bound = {**arguments, "job": claim.job_id, "attempt": claim.attempt}
    updated = db.execute(
        f"update job set lease_until_ms = null, worker = null, {changes}"
        f" where {fence} and state = 'pending' and {condition}",
        bound,
    )
    if updated.rowcount == 0:
        db.execute(f"update job set lease_until_ms = null, worker = null where {fence} and state <> 'pending'", bound)
    return updated.rowcount == 1


def complete(
    db: Database,
    claim: Claim,
    now_ms: int,
    *,
    accepted: Sequence[Accepted] = (),
    confirm_ms: int | None = None,
) -> bool:
    """pending, leased -> delivered, if every record is acknowledged, those last `accepted` among them.

    The bodies go, unless the job is to be confirmed at `confirm_ms`; the row stays, so that the key is never sent
    again. Like `acknowledge` it does not wait for the disk: undone, the job has its bodies and is sent again.
    """
    with unflushed(db), transaction(db):
        if accepted:
            _note(db, claim, accepted, None)
            failpoint.reach("complete.noting")
        is_done = finish(
            db,
            claim,
            "state = 'delivered', due_ms = null, error = null,"
            " finished_ms = :now, confirm_ms = :confirm, body_bytes = iif(:confirm is null, 0, body_bytes)",
            {"now": now_ms, "confirm": confirm_ms},
            "not exists (select 1 from record r where r.job_id = job.id and not exists (select 1"
            " from acknowledgement a where a.turn_id = job.turn_id and a.request_id = r.request_id"
            " and a.digest = r.digest))",
        )
        if is_done:
            db.execute(
                "update attempt set ended_ms = ?, status = 200, error = 'accepted' where job_id = ? and number = ?",
                (now_ms, claim.job_id, claim.attempt),
            )
            if confirm_ms is None:
                forget_contents(db, [claim.job_id])
            counters.bump(db, "delivered", {"": 1}, now_ms)
        if accepted:
            flow.passed(db, claim.destination_id, len(accepted))
        failpoint.reach("complete.finishing")
    failpoint.reach("complete.committed")
    return is_done


def dead_letter(db: Database, claim: Claim, failed: FailedAttempt) -> bool:
    """pending, leased -> dead. Its records stay for whoever looks into it."""
    with transaction(db):
        is_done = finish(
            db,
            claim,
            "state = 'dead', due_ms = null, finished_ms = :now, error = :error",
            {"now": failed.ended_ms, "error": failed.error},
        )
        if _end_attempt(db, claim, failed):
            counters.failed(db, failed)
    return is_done


def retry_later(db: Database, claim: Claim, failed: FailedAttempt, *, delay_ms: int, is_charged: bool) -> bool:
    """pending, leased -> pending, due later. `is_charged`: the failure is the job's own."""
    with transaction(db):
        return _retry_later(db, claim, failed, delay_ms, is_charged=is_charged)


def _retry_later(db: Database, claim: Claim, failed: FailedAttempt, delay_ms: int, *, is_charged: bool) -> bool:
    is_news = _end_attempt(db, claim, failed)
    is_done = finish(
        db,
        claim,
        "due_ms = :due, error = :error, setbacks = setbacks + 1, failures = failures + :charged,"
        " passes_seen = (select passes from destination where id = job.destination_id)",
        {"due": failed.ended_ms + delay_ms, "error": failed.error, "charged": is_charged},
    )
    if is_news:
        counters.failed(db, failed)
    return is_done


def pause(
    db: Database,
    claim: Claim,
    failed: FailedAttempt,
    *,
    health: Paused,
    count: int,
    delay_ms: int,
    is_charged: bool,
) -> bool:
    """pending, leased -> pending, due at once, but its destination waits: see `flow.pause`.

    In one transaction: a job whose lease stayed would be taken for one that its worker died with.
    """
    with transaction(db):
        if is_charged:
            is_done = _retry_later(db, claim, failed, 0, is_charged=True)
        else:
            is_done = _release(db, claim, failed.ended_ms, failed)
        # Last, as wherever a job and its destination change: who writes both must not wait in a circle.
        flow.pause(
            db,
            claim.destination_id,
            health=health,
            reason=failed.error,
            count=count,
            probe_ms=failed.ended_ms + delay_ms,
            now_ms=failed.ended_ms,
        )
    return is_done


def release(db: Database, claim: Claim, *, due_ms: int, failed: FailedAttempt | None = None) -> bool:
    """pending, leased -> pending: the attempt says nothing about the job, or was none."""
    with transaction(db):
        return _release(db, claim, due_ms, failed)


def _release(db: Database, claim: Claim, due_ms: int, failed: FailedAttempt | None) -> bool:
    is_news = _end_attempt(db, claim, failed or FailedAttempt(due_ms, "not tried: the worker was told to stop"))
    is_done = finish(
        db,
        claim,
        "due_ms = :due, error = coalesce(:error, error)",
        {"due": due_ms, "error": failed and failed.error},
    )
    if failed is not None and is_news:
        counters.failed(db, failed)
    return is_done


def drop(db: Database, claim: Claim, reason: Literal["policy", "size"], now_ms: int) -> bool:
    """pending, leased -> dropped.

    `policy`: its bytes were made under a looser policy than the one in force. `size`: it gave up its bodies, and there
    is nothing left to make them of.
    """
    with transaction(db):
        is_done = finish(
            db,
            claim,
            "state = 'dropped', drop_reason = :reason, due_ms = null, finished_ms = :now, body_bytes = 0, error = null",
            {"reason": reason, "now": now_ms},
            "(:reason = 'policy' or body_bytes = 0)",
        )
        if is_done:
            forget_contents(db, [claim.job_id])
        if is_done and reason == "size":  # the others are captured again
            counters.bump(db, "lost", {reason: 1}, now_ms)
    return is_done


def _end_attempt(db: Database, claim: Claim, ended: FailedAttempt) -> bool:
    """False where it had ended already: the commit was not answered, and what it wrote is written once more."""
    updated = db.execute(
        "update attempt set ended_ms = ?, status = ?, error = ?, answer = ?"
        " where job_id = ? and number = ? and ended_ms is null",
        (ended.ended_ms, ended.status, ended.error, ended.answer or None, claim.job_id, claim.attempt),
    )
    return updated.rowcount == 1


def release_all(db: Database, worker: str) -> list[int]:
    """leased by this worker -> not leased, uncharged: it was told to stop and lets everything go.

    Of each job its destination.
    """
    freed = db.execute(
        "update job set lease_until_ms = null, worker = null where lease_until_ms is not null and worker = ?"
        " returning destination_id",
        (worker,),
    ).fetchall()
    return [row["destination_id"] for row in freed]
