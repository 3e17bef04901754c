"""Destinations, and what the spool remembers beside its jobs: folders' options, refusals, its salt.

    fine  ── pause ──▶  paused  ── resume ──▶  fine

A destination is an endpoint and a fingerprint of the API key; the key itself is never stored. While it is paused its
jobs wait and are charged nothing; one of them at a time tries again when the probe is due.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Destination:
    id: int
    endpoint: str
    key_fingerprint: str
    route: str | None
    pause_reason: str | None
    pause_count: int
    probe_ms: int | None
    delivery_options: Mapping[str, object]
    worker_wanted: str


def fingerprint(db: sqlite3.Connection, secret: str) -> str:
    """A short salted hash: equal for equal secrets within this ledger, worthless elsewhere. '' for ''."""
    if not secret:
        return ""
    salt = str(db.execute("select value from meta where name = 'salt'").fetchone()[0])
    return hashlib.sha256(f"{salt}\0{secret}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


def destination(db: sqlite3.Connection, endpoint: str, key_fingerprint: str, now_ms: int) -> Destination:
    """The destination's row, made when it is new."""
    row = _destination(db, endpoint, key_fingerprint)
    if row is None:
        db.execute(
            "insert into destination (endpoint, key_fingerprint, created_ms) values (?, ?, ?) on conflict do nothing",
            (endpoint, key_fingerprint, now_ms),
        )
        row = _destination(db, endpoint, key_fingerprint)
    assert row is not None  # noqa: S101 - inserted above, and destinations are never deleted
    return row


def _destination(db: sqlite3.Connection, endpoint: str, key_fingerprint: str) -> Destination | None:
    row = db.execute(
        "select * from destination where endpoint = ? and key_fingerprint = ?", (endpoint, key_fingerprint)
    ).fetchone()
    return None if row is None else _read_destination(row)


def is_used(db: sqlite3.Connection, destination_id: int) -> bool:
    """Whether a session was ever captured for it."""
    return (
        db.execute("select 1 from session where destination_id = ? limit 1", (destination_id,)).fetchone() is not None
    )


def by_id(db: sqlite3.Connection, destination_id: int) -> Destination:
    return _read_destination(db.execute("select * from destination where id = ?", (destination_id,)).fetchone())


def destinations(db: sqlite3.Connection) -> list[Destination]:
    return [_read_destination(row) for row in db.execute("select * from destination order by id")]


def _read_destination(row: sqlite3.Row) -> Destination:
    return Destination(
        id=row["id"],
        endpoint=row["endpoint"],
        key_fingerprint=row["key_fingerprint"],
        route=row["route"],
        pause_reason=row["pause_reason"],
        pause_count=row["pause_count"],
        probe_ms=row["probe_ms"],
        delivery_options=json.loads(row["delivery_options"]),
        worker_wanted=row["worker_wanted"],
    )


def remember_route(db: sqlite3.Connection, destination_id: int, route: str) -> None:
    db.execute("update destination set route = ? where id = ? and route is not ?", (route, destination_id, route))


def remember_delivery_options(db: sqlite3.Connection, destination_id: int, options: Mapping[str, object]) -> None:
    text = json.dumps(options, sort_keys=True)
    db.execute(
        "update destination set delivery_options = ? where id = ? and delivery_options <> ?",
        (text, destination_id, text),
    )


def want_worker(db: sqlite3.Connection, destination_id: int, worker: str) -> None:
    """Say which worker (version and settings) should serve this destination; one that differs ends by itself."""
    db.execute(
        "update destination set worker_wanted = ? where id = ? and worker_wanted <> ?",
        (worker, destination_id, worker),
    )


def remember_folder(db: sqlite3.Connection, folder: str, capture_options: Mapping[str, object], now_ms: int) -> None:
    db.execute(
        "insert into folder (hash, capture_options, seen_ms) values (?, ?, ?) on conflict (hash) do update"
        " set capture_options = excluded.capture_options, seen_ms = excluded.seen_ms"
        " where capture_options <> excluded.capture_options",
        (folder, json.dumps(capture_options, sort_keys=True), now_ms),
    )


def folder_options(db: sqlite3.Connection, folder: str) -> dict[str, object] | None:
    """The capture options last seen for a folder, None when live capture never saw it."""
    row = db.execute("select capture_options from folder where hash = ?", (folder,)).fetchone()
    return None if row is None else dict(json.loads(row[0]))


def refuse(db: sqlite3.Connection, reason: str, now_ms: int, *, times: int = 1) -> None:
    """Count lines that the hook could not use, or what else was lost before it became a job."""
    db.execute(
        "insert into refusal (reason, count, last_ms) values (?, ?, ?)"
        " on conflict (reason) do update set count = count + excluded.count, last_ms = excluded.last_ms",
        (reason, times, now_ms),
    )


def pause(db: sqlite3.Connection, destination_id: int, *, reason: str, count: int, probe_ms: int, now_ms: int) -> None:
    """fine or paused -> paused: nothing is claimed before `probe_ms`, and then one job at a time.

    `count` is the number of probes failed in a row, as the attempt knew it that now ends: of a dozen jobs that were in
    flight when the other side went away each says 1, and together they are no reason to wait longer.
    """
    db.execute(
        "update destination set pause_reason = ?, pause_count = max(pause_count, ?), probe_ms = ?, probed_ms = ?"
        " where id = ?",
        (reason, count, probe_ms, now_ms, destination_id),
    )


def resume(db: sqlite3.Connection, destination_id: int) -> bool:
    """paused -> fine."""
    updated = db.execute(
        "update destination set pause_reason = null, pause_count = 0, probe_ms = null"
        " where id = ? and pause_reason is not null",
        (destination_id,),
    )
    return updated.rowcount == 1


def probe_now(db: sqlite3.Connection, destination_id: int, now_ms: int) -> bool:
    """paused -> paused, but the next probe may run at once (a worker started, somebody asked for a flush)."""
    updated = db.execute(
        "update destination set probe_ms = ? where id = ? and probe_ms > ?", (now_ms, destination_id, now_ms)
    )
    return updated.rowcount == 1


def refusals(db: sqlite3.Connection, limit: int = 20) -> list[tuple[str, int, int]]:
    """(reason, count, last time in ms), most recent first."""
    rows = db.execute("select reason, count, last_ms from refusal order by last_ms desc limit ?", (limit,)).fetchall()
    return [(row["reason"], row["count"], row["last_ms"]) for row in rows]
