"""Destinations: an endpoint and a fingerprint of the API key; the key itself is never stored.

What is known of one is in its row, its health, too (see `flow`), so that all workers share it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from app.database.connection import Database, Row

STARTING_MS = 20_000
"""A turn that ended so short before its folder or destination was first seen counts as later: the hook was starting.

Twice what a hook takes to start on a busy machine; longer, and what was said before the plugin was there would leave.
"""
HELICONE = "helicone"
"""The kind of which several keys may be of one organisation: what one of its destinations has, all have."""
# The others have their room each, so that none of them takes that of another.
IN_ROOM = "(select id from destination where iif(:room is null, kind = 'helicone', id = :room))"
"""The destinations that share one maxSpoolSize: `:room` alone, where it is of another kind; else all of Helicone."""


@dataclass(frozen=True, slots=True)
class Destination:
    id: int
    endpoint: str
    key_fingerprint: str
    route: str | None
    health: str
    """fine; down: it cannot be asked; refused: it will not take anything; quota: it takes numbers without bodies."""
    pause_reason: str | None
    pause_count: int
    probe_ms: int | None
    concurrency: int | None
    """How many jobs may be in flight soon after a pause; None: as many as there are threads."""
    delivery_options: Mapping[str, object]
    worker_wanted: str
    was_tried: bool
    """Something was ever posted to it, and it answered or was paused."""
    has_accepted: bool = False
    """Some record, ever."""
    kind: str = HELICONE
    name: str = ""
    """By which settings name it; '' of Helicone, and where none does any more."""
    begun_ms: int = 0
    """Turns that ended before are for a person to bring; 0 of Helicone, which has them from its folder's first day."""


def fingerprint(db: Database, secret: str) -> str:
    """A short salted hash: equal for equal secrets within this ledger, worthless elsewhere. '' for ''."""
    if not secret:
        return ""
    salt = str(db.execute("select value from meta where name = 'salt'").fetchone()[0])
    return hashlib.sha256(f"{salt}\0{secret}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


def destination(db: Database, endpoint: str, key_fingerprint: str, now_ms: int, kind: str = HELICONE) -> Destination:
    """The destination's row, made when it is new. The fingerprint of any other kind than Helicone is of that, too."""
    row = _destination(db, endpoint, key_fingerprint)
    if row is None:
        db.execute(
            "insert into destination (endpoint, key_fingerprint, created_ms, kind) values (?, ?, ?, ?)"
            " on conflict do nothing",
            (endpoint, key_fingerprint, now_ms, kind),
        )
        row = _destination(db, endpoint, key_fingerprint)
    assert row is not None  # noqa: S101 - inserted above, and destinations are never deleted
    return row


def _destination(db: Database, endpoint: str, key_fingerprint: str) -> Destination | None:
    row = db.execute(
        "select * from destination where endpoint = ? and key_fingerprint = ?", (endpoint, key_fingerprint)
    ).fetchone()
    return None if row is None else _read_destination(row)


def is_used(db: Database, destination_id: int) -> bool:
    """Whether a session was ever captured for it."""
    return (
        db.execute("select 1 from session where destination_id = ? limit 1", (destination_id,)).fetchone() is not None
    )


def by_id(db: Database, destination_id: int) -> Destination:
    return _read_destination(db.execute("select * from destination where id = ?", (destination_id,)).fetchone())


def destinations(db: Database) -> list[Destination]:
    return [_read_destination(row) for row in db.execute("select * from destination order by id")]


def _read_destination(row: Row) -> Destination:
    return Destination(
        id=row["id"],
        endpoint=row["endpoint"],
        key_fingerprint=row["key_fingerprint"],
        route=row["route"],
        health=row["health"],
        pause_reason=row["pause_reason"],
        pause_count=row["pause_count"],
        probe_ms=row["probe_ms"],
        concurrency=row["concurrency"],
        delivery_options=json.loads(row["delivery_options"]),
        worker_wanted=row["worker_wanted"],
        was_tried=row["passes"] > 0 or row["route"] is not None or row["probed_ms"] is not None,
        has_accepted=row["passes"] > 0,
        kind=row["kind"],
        name=row["name"],
        begun_ms=0 if row["kind"] == HELICONE else row["created_ms"] - STARTING_MS,
    )


def note_name(db: Database, destination_id: int, name: str) -> None:
    """By this name settings mean this destination, and no other one."""
    others = db.execute(
        "select 1 from destination where (name = :name) <> (id = :id) limit 1", {"name": name, "id": destination_id}
    )
    if others.fetchone() is not None:  # else the write lock would be taken for nothing
        db.execute(
            "update destination set name = iif(id = :id, :name, '') where name = :name or id = :id",
            {"name": name, "id": destination_id},
        )


def keep_names(db: Database, names: Collection[str]) -> None:
    """No setting has any other name."""
    if all(one.name in {"", *names} for one in destinations(db)):
        return  # else the write lock would be taken for nothing
    db.execute(
        "update destination set name = '' where name <> '' and name not in (select value from json_each(?))",
        (json.dumps(list(names)),),
    )


def readdress(db: Database, destination_id: int, endpoint: str, key_fingerprint: str) -> bool:
    """any health -> fine, in the caller's transaction: what waits there goes to another address or under another key.

    False where that is another destination. What is known of a place goes with the place; where the key alone is new,
    it stays true: that is of the same organisation.
    """
    other = db.execute(
        "select 1 from destination where endpoint = ? and key_fingerprint = ? and id <> ?",
        (endpoint, key_fingerprint, destination_id),
    ).fetchone()
    if other is not None:
        return False
    db.execute(
        "update confirmation set found_ms = null, found_id = null, found_start_ms = null, missed_ms = null"
        " where destination_id = :id and :endpoint <> (select endpoint from destination where id = :id)",
        {"id": destination_id, "endpoint": endpoint},
    )
    db.execute(
        "update confirmation set failure = null, failures = 0, retry_ms = null where destination_id = ?",
        (destination_id,),
    )
    db.execute(
        "update destination set route = iif(endpoint = :endpoint, route, null), endpoint = :endpoint,"
        " key_fingerprint = :fingerprint, health = 'fine', pause_reason = null, pause_count = 0, probe_ms = null,"
        " concurrency = iif(pause_reason is null, concurrency, 1) where id = :id",
        {"endpoint": endpoint, "fingerprint": key_fingerprint, "id": destination_id},
    )
    return True


def vacate(db: Database, destination_id: int) -> None:
    """Nobody delivers there any more: its address and key are free for another one, which begins anew."""
    db.execute("update destination set key_fingerprint = ? where id = ?", (f"removed {destination_id}", destination_id))


def own_room(one: Destination) -> int | None:
    """`:room` of a destination."""
    return None if one.kind == HELICONE else one.id


def remember_route(db: Database, destination_id: int, route: str) -> None:
    db.execute("update destination set route = ? where id = ? and route is not ?", (route, destination_id, route))


def remember_delivery_options(db: Database, destination_id: int, options: Mapping[str, object]) -> None:
    text = json.dumps(options, sort_keys=True)
    db.execute(
        "update destination set delivery_options = ? where id = ? and delivery_options <> ?",
        (text, destination_id, text),
    )


def want_worker(db: Database, destination_id: int, worker: str) -> None:
    """Say which worker (version and settings) should serve this destination; one that differs ends by itself."""
    db.execute(
        "update destination set worker_wanted = ? where id = ? and worker_wanted <> ?",
        (worker, destination_id, worker),
    )


def rotated(db: Database, ours: Destination) -> list[tuple[int, str]]:
    """(destination, folder) of what waits for a key that is refused and that its folder has replaced by ours.

    Only the folder tells: what was captured in another one may be meant for somebody else's Helicone.
    """
    rows = db.execute(
        "select distinct d.id, s.folder from destination d join session s on s.destination_id = d.id"
        " join folder f on f.hash = s.folder and f.destination_id = :ours"
        " where d.id <> :ours and d.endpoint = :endpoint and d.key_fingerprint <> '' and d.health = 'refused'"
        " and d.kind = :kind",
        {"ours": ours.id, "endpoint": ours.endpoint, "kind": ours.kind},
    ).fetchall()
    return [(row["id"], row["folder"]) for row in rows]
