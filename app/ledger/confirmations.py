"""Confirmations, the transitions: a delivered job is confirmed, not found yet, sent again, or dead.

    delivered, to be confirmed ─▶ delivered      confirmed, given up: the bodies go
                               ─▶ delivered      not_found_yet: looked for again later
                               ─▶ pending        send_again
                               ─▶ dead           dead_letter_unstored

An acknowledgement that turned out to mean nothing is deleted: its record is posted again with whatever version of the
turn comes next.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from app.database.connection import Database, Row, transaction
from app.ledger import counters, limits, record_identity
from app.ledger.destinations import IN_ROOM
from app.ledger.job import BATCH
from app.ledger.limits import AGE_MS, NO_LIMITS, Limits
from app.ledger.record_identity import RecordIdentity
from app.ledger.versions import forget_contents

AHEAD_MS_MAX = 5 * 24 * 3_600_000
"""No look is put off for longer: a later time was set by a clock that was wrong."""
_WAITS = "j.confirm_ms is not null and j.body_bytes > 0"
_OF_ROOM = f"+j.destination_id in {IN_ROOM}"
# Whether it could be sent again. Its bodies may be OpenCode's to keep: the rows say what they must be.
_HAS_RECORDS = "exists (select 1 from record r where r.job_id = {job}.id)"


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """A delivered job whose time to be read back has come."""

    job_id: int
    turn_id: int
    key: str
    attempt: int
    """Fences every transition: a job that was sent again meanwhile has another one."""
    request_id: uuid.UUID
    """Of the record that was accepted last: where it is stored, those before it are."""
    start_ms: int | None
    """Of that record; None where it is not kept."""
    body_bytes: int | None
    """The same; None where it is not known any more what its bodies are, so that it cannot be sent again."""
    delivered_ms: int
    resends: int


_ACCEPTED_LAST = (
    "from record r left join acknowledgement a on a.turn_id = j.turn_id and a.request_id = r.request_id"
    " where r.job_id = j.id order by a.acknowledged_ms desc, r.position desc limit 1"
)
_DUE = (
    "select * from (select j.id, j.turn_id, j.key, j.attempt, j.finished_ms, j.confirm_ms, j.resends,"
    f" (select r.body_bytes {_ACCEPTED_LAST}) as body_bytes, coalesce((select r.request_id {_ACCEPTED_LAST}),"
    "  (select a.request_id from acknowledgement a where a.turn_id = j.turn_id"
    "   order by a.acknowledged_ms desc, a.request_id limit 1)) as request_id"
    " from job j where j.destination_id = :destination"
    " and j.confirm_ms is not null and (j.confirm_ms <= :now or j.confirm_ms > :latest)) due"
    " where request_id is not null"
)


def next_confirmation_ms(db: Database, destination_id: int) -> int | None:
    """When the next delivered job is to be read back, None when none is."""
    row = db.execute(
        "select min(confirm_ms) from job where destination_id = ? and confirm_ms is not null", (destination_id,)
    ).fetchone()
    return None if row[0] is None else int(row[0])


def due_for_confirmation(db: Database, destination_id: int, now_ms: int, limit: int) -> list[Unconfirmed]:
    """The one whose time has come last, and then those that wait for the longest time.

    The last one first, because it is found as soon as anything is stored and shown again, however many wait before it.
    """
    arguments = {"destination": destination_id, "now": now_ms, "latest": now_ms + AHEAD_MS_MAX, "limit": limit}
    # Two questions: one order for both would sort all that is due.
    rows = [
        *db.execute(f"{_DUE} order by confirm_ms desc, id desc limit 1", arguments),
        *db.execute(f"{_DUE} order by confirm_ms, id limit :limit", arguments),
    ]
    due = list({row["id"]: row for row in rows}.values())[:limit]
    identities = record_identity.read(db, [row["id"] for row in due])
    return [_unconfirmed(row, identities.get(row["id"], ())) for row in due]


def _unconfirmed(row: Row, identities: Iterable[RecordIdentity]) -> Unconfirmed:
    request_id = uuid.UUID(bytes=row["request_id"])
    return Unconfirmed(
        job_id=row["id"],
        turn_id=row["turn_id"],
        key=row["key"],
        attempt=row["attempt"],
        request_id=request_id,
        start_ms=next((one.identity_fields.start_ms for one in identities if one.request_id == request_id), None),
        body_bytes=row["body_bytes"],
        delivered_ms=row["finished_ms"],
        resends=row["resends"],
    )


def confirmed(db: Database, due: Unconfirmed, now_ms: int, *, has_body: bool) -> bool:
    """delivered, to be confirmed -> delivered: it is there, and its bodies go. Without its body there, it is marked.

    Whoever brings a marked turn again, as a newer version or because somebody asks, sends all of it.
    """
    with transaction(db):
        changed = _update(
            db,
            due,
            "confirm_ms = null, body_bytes = 0, confirmed_ms = :now, body_not_stored = :without_body",
            {"now": now_ms, "without_body": not has_body},
        )
        if changed:
            forget_contents(db, [due.job_id])
            if not has_body:
                db.execute("delete from acknowledgement where turn_id = ?", (due.turn_id,))
    return changed


def not_found_yet(db: Database, due: Unconfirmed, confirm_ms: int) -> bool:
    """delivered, to be confirmed -> the same, to be looked for again at `confirm_ms`."""
    with transaction(db):
        return _update(db, due, "confirm_ms = :confirm", {"confirm": confirm_ms})


def send_again(db: Database, due: Unconfirmed, now_ms: int) -> bool:
    """delivered, to be confirmed -> pending, due now: the same records under the same request ids.

    False when its records are gone, as they may be since it was read: given up for want of room, and looked for again.
    """
    with transaction(db):
        changed = _update(
            db,
            due,
            # The attempt number moves on: whoever else looks at the same job must not settle it, too.
            "state = 'pending', due_ms = :now, finished_ms = null, confirm_ms = null,"
            " attempt = attempt + 1, resends = resends + 1, setbacks = 0, failures = 0, passes_seen = null",
            {"now": now_ms},
            condition=_HAS_RECORDS.format(job="job"),
        )
        if changed:
            _disbelieve(db, due)
    return changed


def dead_letter_unstored(db: Database, due: Unconfirmed, now_ms: int, error: str) -> bool:
    """delivered, to be confirmed -> dead. Its records stay, to be sent again once the other side is mended.

    False when its records are gone, as of `send_again`.
    """
    with transaction(db):
        changed = _update(
            db,
            due,
            "state = 'dead', confirm_ms = null, finished_ms = :now, error = :error",
            {"now": now_ms, "error": error},
            condition=_HAS_RECORDS.format(job="job"),
        )
        if changed:
            _disbelieve(db, due)
            counters.bump(db, "failed", {counters.NOT_STORED: 1}, now_ms)
    return changed


def _update(
    db: Database, due: Unconfirmed, changes: str, arguments: dict[str, object], *, condition: str = "1 = 1"
) -> bool:
    updated = db.execute(
        f"update job set {changes} where id = :job and attempt = :attempt and state = 'delivered'"
        f" and confirm_ms is not null and {condition}",
        {**arguments, "job": due.job_id, "attempt": due.attempt},
    )
    return updated.rowcount == 1


def _disbelieve(db: Database, due: Unconfirmed) -> None:
    db.execute(
        "delete from acknowledgement where turn_id = ? and request_id in"
        " (select request_id from record where job_id = ?)",
        (due.turn_id, due.job_id),
    )


def look_back(db: Database, destination_id: int, now_ms: int) -> int:
    """delivered -> delivered, to be confirmed now: what was never looked for, since bodies were last seen.

    When bodies are found missing, those of others may be missing as well. They are not held any more, and their
    request ids are known by what was acknowledged. At most BATCH, the latest.
    """
    return db.execute(
        "update job set confirm_ms = :now where id in (select j.id from job j where j.destination_id = :destination"
        " and j.state = 'delivered' and j.confirm_ms is null and j.confirmed_ms is null"
        " and j.finished_ms > (select coalesce(max(c.finished_ms), 0) from job c where c.destination_id = :destination"
        "  and c.state = 'delivered' and c.confirmed_ms is not null and c.body_not_stored = 0)"
        " and exists (select 1 from acknowledgement a where a.turn_id = j.turn_id)"
        " order by j.finished_ms desc limit :limit)"
        " and state = 'delivered' and confirm_ms is null and confirmed_ms is null",
        {"now": now_ms, "destination": destination_id, "limit": BATCH},
    ).rowcount


# --- giving up -------------------------------------------------------------------------------------------------------


def give_up_confirmations(
    db: Database,
    now_ms: int,
    *,
    bytes_max: int | None,
    age_ms_max: int,
    bytes_max_of: Limits = NO_LIMITS,
    age_ms_max_of: Limits = NO_LIMITS,
    room: int | None = None,
) -> int:
    """delivered, to be confirmed -> delivered, oldest first, until all held bodies fit into `bytes_max`; and the aged.

    None: nothing bounds the room.
    Folders that are in `age_ms_max_of` have that age instead, and what is held of those in `bytes_max_of` is to fit
    into their own size before. These bodies are the first to go: they were accepted already. Counted for status.
    Returns the number of jobs.
    """
    given_up = 0
    ages: dict[str, object] = {"now": now_ms, "age": age_ms_max, "ages": limits.as_json(age_ms_max_of)}
    while batch := _give_up(db, f"finished_ms + {AGE_MS} < :now", ages):
        given_up += batch
    waits = f"{_WAITS} and {_OF_ROOM}"
    while (excess := limits.excess(db, bytes_max_of, f"j.body_bytes > 0 and {_OF_ROOM}", room)) and (
        batch := _give_up(db, limits.oldest(waits, "j.finished_ms"), {"limits": limits.as_json(excess), "room": room})
    ):
        given_up += batch
    if bytes_max is None:
        return given_up
    while batch := _give_up(
        db,
        "id in (select id from (select id, sum(body_bytes) over (order by finished_ms, id) - body_bytes as older"
        f" from job j where {waits}) held where older < :excess)",
        {"excess": _held_bytes(db, room) - bytes_max, "room": room},
    ):
        given_up += batch
    return given_up


def give_up_confirmation(db: Database, destination_id: int, due: Unconfirmed | None = None) -> int:
    """delivered, to be confirmed -> delivered, counted for status: one job of which nothing is left to send again.

    Or all of a destination at which nobody will read back. Returns the number of jobs.
    """
    arguments: dict[str, object] = {"destination": destination_id}
    which = "destination_id = :destination"
    if due is not None:
        arguments |= {"job": due.job_id, "attempt": due.attempt}
        which = "id = :job and attempt = :attempt"
    given_up = 0
    while batch := _give_up(db, which, arguments):
        given_up += batch
    return given_up


def forget_session(db: Database, destination_id: int, session: str) -> None:
    """delivered, to be confirmed -> delivered: the session was deleted in OpenCode, so nothing is sent again."""
    with transaction(db):
        rows = db.execute(
            "update job set confirm_ms = null, body_bytes = 0 where state = 'delivered' and confirm_ms is not null"
            " and turn_id in (select t.id from session s join turn t on t.session_id = s.id"
            "  where s.destination_id = ? and s.name = ?) returning id",
            (destination_id, session),
        ).fetchall()
        forget_contents(db, [row["id"] for row in rows])


def _held_bytes(db: Database, room: int | None) -> int:
    sums = f"select coalesce(sum(body_bytes), 0) from tally where destination_id in {IN_ROOM}"
    return int(db.execute(sums, {"room": room}).fetchone()[0])


def _give_up(db: Database, condition: str, arguments: dict[str, object]) -> int:
    """At most BATCH of those that wait to be confirmed, oldest first."""
    wanted = f"select id from job where confirm_ms is not null and {condition} order by finished_ms, id limit {BATCH}"
    # Most of the time there is nothing to be given up, and no reason to lock the ledger.
    if not db.execute(f"select exists ({wanted})", arguments).fetchone()[0]:
        return 0
    with transaction(db):
        rows = db.execute(
            f"update job set confirm_ms = null, body_bytes = 0 where id in ({wanted}) and state = 'delivered'"
            " and confirm_ms is not null returning id, destination_id",
            arguments,
        ).fetchall()
        forget_contents(db, [row["id"] for row in rows])
        db.executemany(
            "insert into confirmation (destination_id, given_up) values (?, 1)"
            " on conflict (destination_id) do update set given_up = confirmation.given_up + 1",
            [(row["destination_id"],) for row in rows],
        )
    return len(rows)
