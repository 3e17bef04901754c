"""Reading back at a destination: its control, why a look came to nothing, and when the next look is.

One row for each destination in the table `confirmation`, shared by all workers.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from app.database.connection import Database
from app.ledger.confirmations import AHEAD_MS_MAX

BLIND = "blind: even a turn that was found there before is not found now; nothing is concluded"
UNPROVEN = "unproven: nothing was found there for a day, so what is not found may be there; nothing is concluded"
"""As a failure: why a look told nothing."""


@dataclass(frozen=True, slots=True)
class Control:
    """The row that was found at Helicone last: a look that does not find it either is blind."""

    request_id: uuid.UUID | None
    """None: found before it was kept which."""
    start_ms: int
    found_ms: int


def control(db: Database, destination_id: int) -> Control | None:
    """None: nothing was ever found there."""
    row = db.execute(
        "select found_id, found_start_ms, found_ms from confirmation where destination_id = ? and found_ms is not null",
        (destination_id,),
    ).fetchone()
    if row is None:
        return None
    found_id = None if row["found_id"] is None else uuid.UUID(bytes=row["found_id"])
    return Control(found_id, row["found_start_ms"] or 0, row["found_ms"])


def note_found(db: Database, destination_id: int, found: Control) -> None:
    """A row was found: it is the control from now on."""
    assert found.request_id is not None  # noqa: S101 - who looks for a row knows it
    db.execute(
        "insert into confirmation (destination_id, found_id, found_start_ms, found_ms) values (?, ?, ?, ?)"
        " on conflict (destination_id) do update set found_id = excluded.found_id,"
        " found_start_ms = excluded.found_start_ms, found_ms = excluded.found_ms",
        (destination_id, found.request_id.bytes, found.start_ms, found.found_ms),
    )


def note_missed(db: Database, destination_id: int, now_ms: int) -> None:
    """Something was looked for and not found, where nothing was ever found."""
    db.execute(
        "insert into confirmation (destination_id, missed_ms) values (?, ?)"
        " on conflict (destination_id) do update set missed_ms = excluded.missed_ms"
        " where confirmation.missed_ms is null",
        (destination_id, now_ms),
    )


@dataclass(frozen=True, slots=True)
class Confirmations:
    """How far the reading back of one destination's jobs is. Numbers are of jobs."""

    confirmed: int = 0
    """Seen at Helicone, with their bodies."""
    waiting: int = 0
    """To be read back."""
    body_not_stored: int = 0
    """Seen without their bodies."""
    given_up: int = 0
    """Their bodies went before they were seen: no room, too old, or switched off."""
    failure: str | None = None
    """Why reading back came to nothing the last time."""
    failures: int = 0
    """In a row."""
    retry_ms: int | None = None
    is_never_found: bool = False
    """Something was looked for, and nothing was ever found there."""


def confirmations(db: Database, destination_id: int) -> Confirmations:
    jobs = db.execute(
        "select coalesce(sum(jobs) filter (where reason = 'confirmed'), 0),"
        " coalesce(sum(jobs) filter (where reason = 'to be confirmed'), 0),"
        " coalesce(sum(jobs) filter (where reason = 'body not stored'), 0)"
        " from tally where destination_id = ? and state = 'delivered'",
        (destination_id,),
    ).fetchone()
    going = db.execute(
        "select given_up, failure, failures, retry_ms, missed_ms is not null and found_ms is null"
        " from confirmation where destination_id = ?",
        (destination_id,),
    ).fetchone()
    return Confirmations(*jobs, *(going or ()))


def read_back_failures(db: Database, destination_id: int, now_ms: int) -> int | None:
    """How often in a row reading back failed; None: it may not be tried again yet."""
    row = db.execute(
        "select failures, iif(retry_ms > ? and retry_ms <= ?, 1, 0) as waits from confirmation"
        " where destination_id = ?",
        (now_ms, now_ms + AHEAD_MS_MAX, destination_id),
    ).fetchone()
    if row is None:
        return 0
    return None if row["waits"] else int(row["failures"])


def pause_read_back(db: Database, destination_id: int, failure: str, retry_ms: int) -> None:
    """Reading back failed. Delivery goes on."""
    db.execute(
        "insert into confirmation (destination_id, failure, failures, retry_ms) values (?, ?, 1, ?)"
        " on conflict (destination_id) do update set failure = excluded.failure, retry_ms = excluded.retry_ms,"
        " failures = confirmation.failures + 1",
        (destination_id, failure, retry_ms),
    )


def end_read_back_pause(db: Database, destination_id: int, at_ms: int) -> None:
    """It may be tried again at that time already: somebody asked for it, or something new is to be looked for."""
    is_later = "destination_id = ? and retry_ms > ?"
    # Looked first: an update would take the write lock each time, for nothing.
    if db.execute(f"select 1 from confirmation where {is_later}", (destination_id, at_ms)).fetchone():
        db.execute(f"update confirmation set retry_ms = ? where {is_later}", (at_ms, destination_id, at_ms))


def resume_read_back(db: Database, destination_id: int) -> bool:
    """It works again; or a worker has started, maybe with another address, and may try at once."""
    updated = db.execute(
        "update confirmation set failure = null, failures = 0, retry_ms = null"
        " where destination_id = ? and failure is not null",
        (destination_id,),
    )
    return updated.rowcount == 1
