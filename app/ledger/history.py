"""History: all versions of a session's turns that the ledger knows, and which turns a fork copied."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from app.database.connection import Database
from app.ledger import record_identity
from app.ledger.decision import LIVE, Current, Reopen
from app.ledger.job import SESSION_RECORD
from app.ledger.record_identity import RecordIdentity
from app.ledger.versions import CURRENT_COLUMNS, read_current


@dataclass(frozen=True, slots=True)
class Exported:
    """One version of one turn (or, by the name SESSION_RECORD, of a session's own record), and what became of it."""

    turn: str
    key: str
    state: str
    drop_reason: str | None
    error: str | None
    last_event_ms: int
    policy: str
    """What its bodies were made under; '' where that was not kept."""
    was_attempted: bool
    """Whether any of it may be at Helicone."""
    is_recall: bool
    is_sealed: bool
    is_held: bool
    """Pending, but the settings in force do not let it be sent."""
    has_bodies: bool
    """Whether the bytes to post are kept here."""
    finished_ms: int | None
    """When it was delivered, dead, dropped or superseded; None while it is pending."""
    confirmed_ms: int | None
    body_not_stored: bool
    identities: tuple[RecordIdentity, ...]
    """Of all its records; () for a job from before these were kept, that never had any, or where nobody asked."""


def exported(db: Database, destination_id: int, session: str, *, with_identities: bool = True) -> list[Exported]:
    """The oldest version first. The session's subagents are part of its turns."""
    rows = db.execute(
        "select j.id, t.name, j.key, j.state, j.drop_reason, j.error, j.facts_ms, coalesce(p.facts, '') as policy,"
        " j.attempt, j.is_recall, j.is_sealed, j.hold_reason is not null as is_held, j.body_bytes, j.finished_ms,"
        " j.confirmed_ms, j.body_not_stored"
        " from session s join turn t on t.session_id = s.id join job j on j.turn_id = t.id"
        " left join policy p on p.id = j.policy_id where s.destination_id = ? and s.name = ? order by j.id",
        (destination_id, session),
    ).fetchall()
    identities = record_identity.read(db, [row["id"] for row in rows]) if with_identities else {}
    return [
        Exported(
            turn=row["name"],
            key=row["key"],
            state=row["state"],
            drop_reason=row["drop_reason"],
            error=row["error"],
            last_event_ms=row["facts_ms"],
            policy=row["policy"],
            was_attempted=row["attempt"] > 0,
            is_recall=bool(row["is_recall"]),
            is_sealed=bool(row["is_sealed"]),
            is_held=row["state"] == "pending" and bool(row["is_held"]),
            has_bodies=row["body_bytes"] > 0,
            finished_ms=row["finished_ms"],
            confirmed_ms=row["confirmed_ms"],
            body_not_stored=bool(row["body_not_stored"]),
            identities=identities.get(row["id"], ()),
        )
        for row in rows
    ]


def current_turns(db: Database, destination_id: int, session: str) -> dict[str, Current]:
    """Current version of each turn, whatever became of it."""
    rows = db.execute(
        f"select t.name, {CURRENT_COLUMNS} from session s"
        " join turn t on t.session_id = s.id join job j on j.turn_id = t.id and j.state <> 'superseded'"
        " left join policy p on p.id = j.policy_id where s.destination_id = ? and s.name = ?",
        (destination_id, session),
    )
    return {row["name"]: read_current(row) for row in rows}


def exported_elsewhere(db: Database, destination_id: int, session: str) -> dict[str, int]:
    """`last_event_ms` of each turn that is delivered to another destination (key or endpoint), or waits for it.

    Of the same kind, and not one that settings name beside this one: what is there, this one is to have as well.
    """
    rows = db.execute(
        # In this order: SQLite would begin with all jobs of these states.
        "select t.name, max(j.facts_ms) as facts_ms from session s cross join turn t on t.session_id = s.id"
        " cross join job j on j.turn_id = t.id where s.name = :session and j.state in ('pending', 'delivered')"
        " and s.destination_id in (select o.id from destination o left join destination d on d.id = :destination"
        "  where o.id <> :destination and o.kind = coalesce(d.kind, 'helicone') and o.name = '') group by t.name",
        {"session": session, "destination": destination_id},
    )
    return {row["name"]: row["facts_ms"] for row in rows}


def brought_along(db: Database, destination_id: int, session: str, turns: Mapping[str, int]) -> set[str]:
    """Which of these turns (name -> last_event_ms) a fork has brought along from a session whose turn is known here.

    At this destination, or at one that counts for it as in `exported_elsewhere`.

    A fork keeps all times of what it copies, and gives it new ids. What was dropped with its deleted session, and what
    was exported under this session already, counts as the session's own.
    """
    rows = db.execute(
        "select distinct j.facts_ms from job j join turn t on t.id = j.turn_id join session s on s.id = j.session_id"
        " where j.facts_ms in (select cast(value as bigint) from json_each(?)) and j.state <> 'superseded'"
        " and coalesce(j.drop_reason, '') <> 'deleted' and t.name <> ? and s.name <> ? and +j.destination_id in"
        " (select o.id from destination o left join destination d on d.id = ?"
        "  where o.id = d.id or o.kind = coalesce(d.kind, 'helicone') and o.name = '')",
        (json.dumps(list(turns.values())), SESSION_RECORD, session, destination_id),
    )
    known = {row["facts_ms"] for row in rows}
    own = {
        row["name"]
        for row in db.execute(
            "select t.name from turn t join session s on s.id = t.session_id where s.name = ?"
            " and s.destination_id in (select o.id from destination o left join destination d on d.id = ?"
            "  where o.id = d.id or o.kind = coalesce(d.kind, 'helicone') and o.name = '')",
            (session, destination_id),
        )
    }
    return {name for name, last_event_ms in turns.items() if last_event_ms in known and name not in own}


def compare_again(db: Database, folder: str) -> None:
    """All sessions of a folder are to be compared with OpenCode's store once more."""
    db.execute("update session set reconciled_ms = null where folder = ? and reconciled_ms is not null", (folder,))


def exported_sessions(db: Database, destination_id: int) -> list[str]:
    """All root sessions of which the ledger knows anything, the oldest first."""
    rows = db.execute(
        "select name from session where destination_id = ? and name = root_name order by id", (destination_id,)
    )
    return [row["name"] for row in rows]


def reconciled_ms(db: Database, destination_id: int, session: str) -> int | None:
    """What OpenCode had written by then was compared with the ledger; None for a session never compared."""
    row = db.execute(
        "select abs(reconciled_ms) as reconciled_ms from session where destination_id = ? and name = ?",
        (destination_id, session),
    ).fetchone()
    return None if row is None else row["reconciled_ms"]


def note_reconciled(db: Database, destination_id: int, session: str, changed_ms: int, *, in_part: bool = False) -> bool:
    """Note that all that OpenCode had written up to `changed_ms` is in the ledger. False for a session without jobs.

    With `in_part` only what counts as missed: what was written before capture began is not, and `is_whole` says so.
    """
    updated = db.execute(
        "update session set reconciled_ms = ? where destination_id = ? and name = ?",
        (-changed_ms if in_part else changed_ms, destination_id, session),
    )
    return updated.rowcount == 1


def is_whole(
    db: Database,
    destination_id: int,
    session: str,
    *,
    changed_ms: int,
    now_ms: int,
    policy: Callable[[str], str],
    reopen: Reopen = LIVE,
) -> bool:
    """Whether nothing is to be done about a session that OpenCode wrote last at `changed_ms`.

    All that was written by then is in the ledger, made under `policy` (its facts for a user id), and nothing of it is
    to be reopened.
    """
    row = db.execute(
        "select id, user_id, coalesce(reconciled_ms, -1) as reconciled_ms from session"
        " where destination_id = ? and name = ? and root_name = name",
        (destination_id, session),
    ).fetchone()
    # A time in the future is from a clock that was ahead, and hides what was written since.
    if row is None or row["reconciled_ms"] != changed_ms or changed_ms > now_ms:
        return False
    other = db.execute(
        "select 1 from turn t join job j on j.turn_id = t.id and j.state <> 'superseded'"
        " left join policy p on p.id = j.policy_id where t.session_id = :session and (coalesce(p.facts, '') <> :policy"
        " or coalesce(j.drop_reason, j.state) in (select value from json_each(:reopen))"
        " or j.body_not_stored = 1 and :body_not_stored = 1) limit 1",
        {
            "session": row["id"],
            "policy": policy(row["user_id"]),
            "reopen": json.dumps(["policy", *reopen.dropped, *reopen.states]),
            "body_not_stored": reopen.body_not_stored,
        },
    ).fetchone()
    return other is None
