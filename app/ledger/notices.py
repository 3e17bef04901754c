"""Notices that are owed: the plugin said that a session has changed, and it is not in the ledger yet.

Beside them, how each turn was when it was last read. Nothing here needs to outlive the machine: what is lost is said
again, or read again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from app.database.connection import Database, transaction, unflushed
from app.ledger.versions import policy_id
from app.runtime import failpoint


def note_notice(db: Database, store: str, session: str, folder: str, now_ms: int) -> int:
    """Something of the session is new, whatever was said of it before; what settles this very notice."""
    with unflushed(db), transaction(db):
        row = db.execute(
            "insert into notice (store, session, folder, noticed_ms) values (?, ?, ?, ?)"
            " on conflict (store, session) do update set folder = excluded.folder, wait_reason = null,"
            " noticed_ms = max(excluded.noticed_ms, notice.noticed_ms + 1) returning noticed_ms",
            (store, session, folder, now_ms),
        ).fetchone()
    return int(row["noticed_ms"])


def note_wait(db: Database, store: str, sessions: Collection[str], reason: str) -> None:
    """Open -> open: it cannot be read now."""
    with unflushed(db), transaction(db):
        db.execute(
            "update notice set wait_reason = :reason where store = :store and wait_reason is not :reason"
            " and session in (select value from json_each(:sessions))",
            {"store": store, "sessions": json.dumps(list(sessions)), "reason": reason},
        )


def settle_notices(db: Database, store: str, seen: Mapping[str, int]) -> int:
    """Open -> (nothing): what these notices named is in the ledger, or gone. Returns how many were open.

    `seen` is by session what `note_notice` gave: a later notice of the session stays open.
    """
    with unflushed(db), transaction(db):
        settled = db.execute(
            "delete from notice where store = ? and exists (select 1 from json_each(?) seen"
            " where seen.key = notice.session and cast(seen.value as bigint) >= notice.noticed_ms)",
            (store, json.dumps(seen)),
        ).rowcount
        failpoint.reach("notice.settling")
    return settled


def open_notices(db: Database, store: str) -> dict[str, tuple[int, str]]:
    """Open notices by session: what settles it, and the folder it was said in, which need not be its own."""
    rows = db.execute("select session, noticed_ms, folder from notice where store = ?", (store,))
    return {row["session"]: (row["noticed_ms"], row["folder"]) for row in rows}


def forget_notices(db: Database, store: str, before_ms: int) -> int:
    """Open -> (nothing): too old, and of another store: its data folder may be gone, and nobody would know."""
    return db.execute("delete from notice where store <> ? and noticed_ms < ?", (store, before_ms)).rowcount


@dataclass(frozen=True, slots=True)
class Unread:
    """Notices that are open."""

    reason: str | None
    """Why they cannot be read now; None: they are about to be, or the turn goes on."""
    sessions: int
    oldest_ms: int


def unread(db: Database) -> list[Unread]:
    rows = db.execute(
        "select wait_reason, count(*) as sessions, min(noticed_ms) as oldest_ms from notice"
        " group by wait_reason order by wait_reason nulls first"
    )
    return [Unread(row["wait_reason"], row["sessions"], row["oldest_ms"]) for row in rows]


def left_unread(db: Database, before_ms: int) -> set[str]:
    """The sessions that were noticed before then, and of which nobody has said why they wait."""
    rows = db.execute("select session from notice where wait_reason is null and noticed_ms < ?", (before_ms,))
    return {row["session"] for row in rows}


def unread_sessions(db: Database) -> set[str]:
    return {row["session"] for row in db.execute("select session from notice")}


@dataclass(frozen=True, slots=True)
class TurnRead:
    """A turn as it was when it was last read."""

    rows: int
    updated_ms: int
    policy: str
    """The one in force then, as `Policy.facts` says it."""


def turns_read(db: Database, destination_id: int, session: str) -> dict[str, TurnRead]:
    rows = db.execute(
        "select t.name, t.row_count, t.updated_ms, coalesce(p.facts, '') as policy from session s"
        " join turn t on t.session_id = s.id and t.row_count is not null left join policy p on p.id = t.policy_id"
        " where s.destination_id = ? and s.name = ?",
        (destination_id, session),
    )
    return {row["name"]: TurnRead(row["row_count"], row["updated_ms"], row["policy"]) for row in rows}


def note_turns_read(db: Database, destination_id: int, session: str, turns: Mapping[str, TurnRead]) -> None:
    """Of those that the ledger has."""
    with unflushed(db), transaction(db):
        policies = {one.policy: policy_id(db, one.policy) for one in turns.values()}
        db.executemany(
            "update turn set row_count = ?, updated_ms = ?, policy_id = ? where name = ?"
            " and session_id = (select id from session where destination_id = ? and name = ?)",
            [
                (one.rows, one.updated_ms, policies[one.policy], name, destination_id, session)
                for name, one in turns.items()
            ],
        )


def has_turn(db: Database, destination_id: int, session: str, turn: str) -> bool:
    """Whether a version of it was ever taken."""
    row = db.execute(
        "select 1 from session s join turn t on t.session_id = s.id and t.name = ? where s.destination_id = ?"
        " and s.name = ?",
        (turn, destination_id, session),
    ).fetchone()
    return row is not None
