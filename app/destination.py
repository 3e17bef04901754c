"""Destinations, and what the spool remembers beside its jobs: folders' options, refusals, its salt.

    fine, quota  ── pause ──▶  down, refused  ── resume ──▶  fine  ── exceed_quota ──▶  quota

A destination is an endpoint and a fingerprint of the API key; the key itself is never stored. Its health is here, so
that all workers share it. While it is paused (down or refused) its jobs wait and are charged nothing; one of them at a
time tries again when the probe is due. After a pause one job is in flight at first, then two, four, eight.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Paused: TypeAlias = Literal["down", "refused"]

CONCURRENCY_MAX = 16
"""From here on a destination that was paused takes as many jobs at once as there are threads."""
SLEEP_MS = 12 * 3_600_000
"""The night of a laptop is nothing to tell of."""
UNERASED = "deleted records still lie in files of the spool: a worker, or `dead purge --all`, rewrites these"


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


def of_folders(db: sqlite3.Connection) -> set[int]:
    """The destinations that the settings of captured folders mean, as their hooks have last seen them."""
    rows = db.execute("select distinct destination_id as id from folder where destination_id is not null")
    return {row["id"] for row in rows}


def had_jobs(db: sqlite3.Connection, folder: str) -> bool:
    """Whether a folder ever had a job, whatever has become of it."""
    row = db.execute(
        "select 1 from job join session s on s.id = job.session_id where s.folder = ? limit 1", (folder,)
    ).fetchone()
    return row is not None


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
        health=row["health"],
        pause_reason=row["pause_reason"],
        pause_count=row["pause_count"],
        probe_ms=row["probe_ms"],
        concurrency=row["concurrency"],
        delivery_options=json.loads(row["delivery_options"]),
        worker_wanted=row["worker_wanted"],
        was_tried=row["passes"] > 0 or row["route"] is not None or row["probed_ms"] is not None,
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


def remember_folder(
    db: sqlite3.Connection, folder: str, destination_id: int, capture_options: Mapping[str, object], now_ms: int
) -> None:
    """Note how a folder is captured, and for which destination."""
    db.execute(
        "insert into folder (hash, destination_id, capture_options, seen_ms, since_ms) values (?, ?, ?, ?, ?)"
        " on conflict (hash) do update set destination_id = excluded.destination_id,"
        " capture_options = excluded.capture_options, seen_ms = excluded.seen_ms"
        " where capture_options <> excluded.capture_options or destination_id is not excluded.destination_id",
        (folder, destination_id, json.dumps(capture_options, sort_keys=True), now_ms, now_ms - STARTING_MS),
    )


STARTING_MS = 60_000
"""A turn that began so short before its folder was first captured counts as captured: the hook was starting."""
NEVER_MS = 1 << 62
"""Later than everything: what is captured since then is nothing."""


def stop_capture(db: sqlite3.Connection, folder: str) -> None:
    """Nothing that OpenCode writes in the folder from now on counts as missed."""
    db.execute("update folder set since_ms = ? where hash = ? and since_ms < ?", (NEVER_MS, folder, NEVER_MS))


def resume_capture(db: sqlite3.Connection, folder: str, now_ms: int) -> None:
    """What OpenCode writes in the folder from now on counts again."""
    db.execute("update folder set since_ms = ? where hash = ? and since_ms = ?", (now_ms, folder, NEVER_MS))


def capture_from(db: sqlite3.Connection, folder: str, since_ms: int) -> None:
    """What OpenCode wrote in a folder that is captured counts from then on, if only later things did."""
    db.execute(
        "update folder set since_ms = ? where hash = ? and since_ms > ? and since_ms < ?",
        (since_ms, folder, since_ms, NEVER_MS),
    )


def captured_since_ms(db: sqlite3.Connection, folder: str) -> int | None:
    """When capture of a folder began, or was switched on again; NEVER_MS while it is off, None when there was none."""
    row = db.execute("select since_ms from folder where hash = ?", (folder,)).fetchone()
    return None if row is None else int(row["since_ms"])


def is_captured(db: sqlite3.Connection, folder: str, destination_id: int) -> bool:
    """Whether what is written in the folder is captured now, for this destination."""
    row = db.execute(
        "select 1 from folder where hash = ? and destination_id = ? and since_ms < ?",
        (folder, destination_id, NEVER_MS),
    ).fetchone()
    return row is not None


def folder_options(db: sqlite3.Connection, folder: str) -> dict[str, object] | None:
    """The capture options last seen for a folder, None when live capture never saw it."""
    row = db.execute("select capture_options from folder where hash = ?", (folder,)).fetchone()
    return None if row is None else dict(json.loads(row[0]))


def all_folder_options(db: sqlite3.Connection) -> dict[str, str]:
    """The capture options last seen, as JSON, by folder."""
    return {row["hash"]: row["capture_options"] for row in db.execute("select hash, capture_options from folder")}


def held_folders(db: sqlite3.Connection) -> list[tuple[str, int]]:
    """(reason, folders) of those whose configuration was not right when a hook saw it last."""
    rows = db.execute(
        "select capture_options ->> 'held' as reason, count(*) as folders from folder"
        " where capture_options ->> 'held' is not null group by reason order by folders desc, reason"
    )
    return [(row["reason"], row["folders"]) for row in rows]


def folder_limits(db: sqlite3.Connection, option: str) -> dict[str, int]:
    """By folder, what its project's files say of `maxSpoolSize`, `maxSpoolAge` or `maxRetries`, where they do."""
    rows = db.execute(
        "select hash, json_extract(capture_options, :path) as value from folder"
        " where json_type(capture_options, :path) = 'integer'",
        {"path": f"$.{option}"},
    )
    return {row["hash"]: row["value"] for row in rows}


def refuse(db: sqlite3.Connection, reason: str, now_ms: int, *, times: int = 1) -> None:
    """Count lines that the hook could not use, or what else was lost before it became a job."""
    db.execute(
        "insert into refusal (reason, count, last_ms) values (?, ?, ?)"
        " on conflict (reason) do update set count = count + excluded.count, last_ms = excluded.last_ms",
        (reason, times, now_ms),
    )


def note(db: sqlite3.Connection, incident: str, now_ms: int, count: int = 1) -> None:
    """Count something that went wrong and that no job tells of; `incident` is one of few sentences."""
    db.execute(
        "insert into incident (what, count, last_ms) values (?, ?, ?) on conflict (what) do update"
        " set count = count + excluded.count, last_ms = excluded.last_ms",
        (incident, count, now_ms),
    )


def note_at_most(db: sqlite3.Connection, incident: str, now_ms: int, count: int) -> None:
    """The same for what is met again each time that it is looked at: `count` is how many there are in all."""
    db.execute(
        "insert into incident (what, count, last_ms) values (?, ?, ?) on conflict (what) do update"
        " set count = excluded.count, last_ms = excluded.last_ms where count < excluded.count",
        (incident, count, now_ms),
    )


def note_jump(db: sqlite3.Connection, jump_ms: int, now_ms: int) -> bool:
    """Count a jump ahead that a worker has lived through. Without one it cannot be told from time that passed."""
    is_long = jump_ms >= SLEEP_MS
    if is_long:
        note(db, "the clock jumped ahead, or the machine slept", now_ms)
    return is_long


def note_unerased(db: sqlite3.Connection, now_ms: int) -> None:
    """In the transaction that deletes what a person wants gone: it lies in the files until these are rewritten."""
    note(db, UNERASED, now_ms)


def unerased(db: sqlite3.Connection) -> tuple[int, int] | None:
    """How often that was noted, and when last (in ms); None where nothing is left to be rewritten."""
    row = db.execute("select count, last_ms from incident where what = ?", (UNERASED,)).fetchone()
    return None if row is None else (row["count"], row["last_ms"])


def note_erased(db: sqlite3.Connection, seen: tuple[int, int]) -> None:
    """All is rewritten that was noted when `unerased` said so, and perhaps not what was noted since."""
    db.execute("delete from incident where what = ? and (count, last_ms) = (?, ?)", (UNERASED, *seen))


def incidents(db: sqlite3.Connection, limit: int = 20) -> list[tuple[str, int, int]]:
    """(what, count, last time in ms), most recent first."""
    rows = db.execute("select what, count, last_ms from incident order by last_ms desc limit ?", (limit,)).fetchall()
    return [(row["what"], row["count"], row["last_ms"]) for row in rows]


def rotated(db: sqlite3.Connection, ours: Destination) -> list[tuple[int, str]]:
    """(destination, folder) of what waits for a key that is refused and that its folder has replaced by ours.

    Only the folder tells: what was captured in another one may be meant for somebody else's Helicone.
    """
    rows = db.execute(
        "select distinct d.id, s.folder from destination d join session s on s.destination_id = d.id"
        " join folder f on f.hash = s.folder and f.destination_id = :ours"
        " where d.id <> :ours and d.endpoint = :endpoint and d.key_fingerprint <> '' and d.health = 'refused'",
        {"ours": ours.id, "endpoint": ours.endpoint},
    ).fetchall()
    return [(row["id"], row["folder"]) for row in rows]


@dataclass(frozen=True, slots=True)
class Terms:
    """On which terms a job may be claimed now."""

    is_probe: bool
    pause_count: int
    room: int | None
    """How many jobs may be claimed; None: as many as there are threads."""


def terms(db: sqlite3.Connection, destination_id: int, now_ms: int) -> Terms | None:
    """None: nothing may be claimed now."""
    row = db.execute(
        "select probe_ms, pause_count, concurrency,"
        " (select count(*) from job where lease_until_ms is not null and +destination_id = destination.id) as leased"
        " from destination where id = ? and (probe_ms is null or probe_ms <= ?)",
        (destination_id, now_ms),
    ).fetchone()
    if row is None:
        return None
    if row["probe_ms"] is not None:
        return Terms(is_probe=True, pause_count=row["pause_count"], room=1)
    room = None if row["concurrency"] is None else row["concurrency"] - row["leased"]
    if room is not None and room <= 0:
        return None
    return Terms(is_probe=False, pause_count=0, room=room)


def await_probe(db: sqlite3.Connection, destination_id: int, until_ms: int) -> None:
    """paused -> paused: a probe is under way, and the next one waits for it."""
    db.execute("update destination set probe_ms = ? where id = ? and probe_ms is not null", (until_ms, destination_id))


def pause(
    db: sqlite3.Connection,
    destination_id: int,
    *,
    health: Paused,
    reason: str,
    count: int,
    probe_ms: int,
    now_ms: int,
) -> None:
    """fine, quota or paused -> paused: nothing is claimed before `probe_ms`, and then one job at a time.

    `count` is the number of probes failed in a row, as the attempt knew it that now ends: of a dozen jobs that were in
    flight when the other side went away each says 1, and together they are no reason to wait longer.
    """
    db.execute(
        "update destination set health = ?, pause_reason = ?, pause_count = max(pause_count, ?), probe_ms = ?,"
        " probed_ms = ? where id = ?",
        (health, reason, count, probe_ms, now_ms, destination_id),
    )


def resume(db: sqlite3.Connection, destination_id: int) -> bool:
    """paused -> fine, one job at a time to begin with."""
    updated = db.execute(
        "update destination set health = 'fine', pause_reason = null, pause_count = 0, probe_ms = null,"
        " concurrency = 1 where id = ? and pause_reason is not null",
        (destination_id,),
    )
    return updated.rowcount == 1


def passed(db: sqlite3.Connection, destination_id: int) -> int:
    """A record was accepted; returns how many were so far. After a pause twice as many jobs may be in flight then."""
    row = db.execute(
        "update destination set passes = passes + 1, concurrency = iif(concurrency * 2 < ?, concurrency * 2, null)"
        " where id = ? returning passes",
        (CONCURRENCY_MAX, destination_id),
    ).fetchone()
    return int(row["passes"])


def exceed_quota(db: sqlite3.Connection, destination_id: int) -> bool:
    """fine -> quota: Helicone goes on to take logs, and keeps their numbers only."""
    updated = db.execute("update destination set health = 'quota' where id = ? and health = 'fine'", (destination_id,))
    return updated.rowcount == 1


def within_quota(db: sqlite3.Connection, destination_id: int) -> bool:
    """quota -> fine: a log was stored with its bodies."""
    updated = db.execute("update destination set health = 'fine' where id = ? and health = 'quota'", (destination_id,))
    return updated.rowcount == 1


def take_sample(db: sqlite3.Connection, destination_id: int, *, now_ms: int, every_ms: int) -> bool:
    """Whether the job that is delivered now is the one of its time that is to be confirmed."""
    updated = db.execute(
        "update destination set sampled_ms = :now where id = :id"
        # A sample from the future was taken before the clock was set back.
        " and (sampled_ms is null or sampled_ms <= :before or sampled_ms > :now)",
        {"id": destination_id, "now": now_ms, "before": now_ms - every_ms},
    )
    return updated.rowcount == 1


Peers: TypeAlias = Literal["succeed", "fail", "none"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known about a destination when one of its jobs has failed."""

    is_paused: bool
    peers: Peers
    """What other jobs say of it: succeed, if a record was accepted since this job last failed (or ever, where it never
    did); fail, if another job has failed since a record was last accepted; none, if neither."""
    is_alone: bool
    """No other job waits for it: then nobody else can show whether it is there."""


def evidence(db: sqlite3.Connection, destination_id: int, job_id: int) -> Evidence:
    row = db.execute(
        "select d.pause_reason is not null as is_paused, d.passes > coalesce(j.passes_seen, 0) as is_passed,"
        " exists (select 1 from job o where o.destination_id = d.id and o.state = 'pending' and o.id <> j.id"
        "  and o.setbacks > 0 and o.passes_seen = d.passes) as is_failed,"
        " not exists (select 1 from job o where o.destination_id = d.id and o.state = 'pending' and o.id <> j.id"
        "  and o.hold_reason is null) as is_alone"
        " from destination d join job j on j.id = ? where d.id = ?",
        (job_id, destination_id),
    ).fetchone()
    peers: Peers = "fail" if row["is_failed"] else "succeed" if row["is_passed"] else "none"
    return Evidence(bool(row["is_paused"]), peers, bool(row["is_alone"]))


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
