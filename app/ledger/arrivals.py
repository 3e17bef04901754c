"""Arrivals: what became of the logs that an intake took, by request id and by the machine that sent them.

The intake makes each log a job of its own: its turn has the request id for a name, and its session is of the machine
that sent the session first, whose name stands where a laptop's ledger has the folder.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from app.database.connection import Database

State = Literal["pending", "delivered", "confirmed", "dead", "dropped"]


@dataclass(frozen=True, slots=True)
class Arrival:
    """What became of one log."""

    state: State
    reason: str
    """Why it is dead or dropped, or has not been delivered yet; '' otherwise."""


@dataclass(frozen=True, slots=True)
class DeadArrival:
    session: str
    request_id: str
    reason: str
    finished_ms: int


@dataclass(frozen=True, slots=True)
class OfMachine:
    """What waits of one machine, and what of it is dead."""

    waiting: int
    dead: int
    dead_latest: tuple[DeadArrival, ...]
    """The latest first."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Jobs of one machine for one destination."""

    destination_id: int
    machine: str
    """'': nobody has said which."""
    waiting: int
    dead: int
    delivered: int
    dropped: int
    """Given up: too old, or purged."""
    oldest_waiting_ms: int | None


def arrivals(db: Database, destination_id: int, request_ids: Collection[str]) -> dict[str, Arrival]:
    """By request id, as UUIDs are written in lower case; of one that nobody has sent for this destination nothing."""
    rows = db.execute(
        "select t.name, j.state, j.drop_reason, coalesce(j.error, '') as error, j.confirmed_ms is not null"
        " and j.body_not_stored = 0 as is_confirmed, coalesce(d.pause_reason, '') as pause_reason"
        " from turn t join session s on s.id = t.session_id and s.destination_id = :destination"
        " join destination d on d.id = s.destination_id join job j on j.turn_id = t.id and j.state <> 'superseded'"
        " where t.name in (select value from json_each(:names))"
        # Of one that came in two sessions, the later one counts.
        " order by j.enqueued_ms, j.id",
        {"destination": destination_id, "names": json.dumps(list(request_ids))},
    )
    found: dict[str, Arrival] = {}
    for row in rows:
        match row["state"]:
            case "dead":
                found[row["name"]] = Arrival("dead", row["error"])
            case "dropped":
                found[row["name"]] = Arrival("dropped", row["drop_reason"])
            case "delivered":
                found[row["name"]] = Arrival("confirmed" if row["is_confirmed"] else "delivered", "")
            case _:
                found[row["name"]] = Arrival("pending", row["pause_reason"] or row["error"])
    return found


def is_current(db: Database, destination_id: int, key: str) -> bool:
    """Whether no other version of its log has taken its place."""
    row = db.execute(
        "select 1 from job where destination_id = ? and key = ? and state <> 'superseded'", (destination_id, key)
    ).fetchone()
    return row is not None


def of_machine(db: Database, destination_id: int, machine: str, letters_max: int) -> OfMachine:
    arguments = {"destination": destination_id, "machine": machine, "limit": letters_max}
    of_it = (
        "from session s join job j on j.session_id = s.id and j.state = '{state}'"
        " where s.destination_id = :destination and s.folder = :machine"
    )
    waiting, dead = db.execute(
        f"select (select count(*) {of_it.format(state='pending')}), (select count(*) {of_it.format(state='dead')})",
        arguments,
    ).fetchone()
    letters = db.execute(
        "select s.name as session, t.name as turn, coalesce(j.error, '') as error, j.finished_ms from session s"
        " join job j on j.session_id = s.id and j.state = 'dead' join turn t on t.id = j.turn_id"
        " where s.destination_id = :destination and s.folder = :machine"
        " order by j.finished_ms desc, j.id desc limit :limit",
        arguments if dead else {**arguments, "limit": 0},
    )
    latest = tuple(DeadArrival(row["session"], row["turn"], row["error"], row["finished_ms"]) for row in letters)
    return OfMachine(waiting, dead, latest)


def by_machine(db: Database) -> list[Sums]:
    """Of all machines of all destinations. Looks at all jobs."""
    rows = db.execute(
        "select s.destination_id, s.folder as machine, count(*) filter (where j.state = 'pending') as waiting,"
        " count(*) filter (where j.state = 'dead') as dead, count(*) filter (where j.state = 'delivered') as delivered,"
        " count(*) filter (where j.state = 'dropped') as dropped,"
        " min(j.enqueued_ms) filter (where j.state = 'pending') as oldest_waiting_ms"
        " from job j join session s on s.id = j.session_id group by 1, 2 order by 1, 2"
    )
    return [Sums(**dict(row)) for row in rows]
