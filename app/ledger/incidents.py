"""Incidents: counts what went wrong for a person to see, and lines of the plugin that were refused."""

from __future__ import annotations

from app.database.connection import Database

UNERASED = "deleted records still lie in files of the spool: a worker, or `dead purge --all`, rewrites these"

SLEEP_MS = 12 * 3_600_000
"""The night of a laptop is nothing to tell of."""


def refuse(db: Database, reason: str, now_ms: int, *, times: int = 1) -> None:
    """Count lines that the hook could not use, or what else was lost before it became a job."""
    db.execute(
        "insert into refusal (reason, count, last_ms) values (?, ?, ?)"
        " on conflict (reason) do update set count = refusal.count + excluded.count, last_ms = excluded.last_ms",
        (reason, times, now_ms),
    )


def note(db: Database, incident: str, now_ms: int, count: int = 1) -> None:
    """Count something that went wrong and that no job tells of; `incident` is one of few sentences."""
    db.execute(
        "insert into incident (what, count, last_ms) values (?, ?, ?) on conflict (what) do update"
        " set count = incident.count + excluded.count, last_ms = excluded.last_ms",
        (incident, count, now_ms),
    )


def note_at_most(db: Database, incident: str, now_ms: int, count: int) -> None:
    """The same for what is met again each time that it is looked at: `count` is how many there are in all."""
    db.execute(
        "insert into incident (what, count, last_ms) values (?, ?, ?) on conflict (what) do update"
        " set count = excluded.count, last_ms = excluded.last_ms where incident.count < excluded.count",
        (incident, count, now_ms),
    )


def note_unerased(db: Database, now_ms: int) -> None:
    """Note, in the transaction that deletes what a person wants gone, that the files still hold it."""
    note(db, UNERASED, now_ms)


def unerased(db: Database) -> tuple[int, int] | None:
    """How often that was noted, and when last (in ms); None where nothing is left to be rewritten."""
    row = db.execute("select count, last_ms from incident where what = ?", (UNERASED,)).fetchone()
    return None if row is None else (row["count"], row["last_ms"])


def note_erased(db: Database, seen: tuple[int, int]) -> None:
    """All is rewritten that was noted when `unerased` said so, and perhaps not what was noted since."""
    db.execute("delete from incident where what = ? and (count, last_ms) = (?, ?)", (UNERASED, *seen))


def incidents(db: Database, limit: int = 20) -> list[tuple[str, int, int]]:
    """(what, count, last time in ms), most recent first."""
    rows = db.execute("select what, count, last_ms from incident order by last_ms desc limit ?", (limit,)).fetchall()
    return [(row["what"], row["count"], row["last_ms"]) for row in rows]


def refusals(db: Database, limit: int = 20) -> list[tuple[str, int, int]]:
    """(reason, count, last time in ms), most recent first."""
    rows = db.execute("select reason, count, last_ms from refusal order by last_ms desc limit ?", (limit,)).fetchall()
    return [(row["reason"], row["count"], row["last_ms"]) for row in rows]


def note_jump(db: Database, jump_ms: int, now_ms: int) -> bool:
    """Count a jump ahead that a worker has lived through. Without one it cannot be told from time that passed."""
    is_long = jump_ms >= SLEEP_MS
    if is_long:
        note(db, "the clock jumped ahead, or the machine slept", now_ms)
    return is_long
