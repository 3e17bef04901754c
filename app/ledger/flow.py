"""Flow to a destination: paused, then one probe at a time, then doubled; with what other jobs say of its health.

    fine, quota  ── pause ──▶  down, refused  ── resume ──▶  fine  ── exceed_quota ──▶  quota

While it is paused (down or refused) its jobs wait and are charged nothing; one of them at a time tries again when the
probe is due. After a pause one job is in flight at first, then two, four, eight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from app.database.connection import Database

Paused: TypeAlias = Literal["down", "refused"]
Peers: TypeAlias = Literal["succeed", "fail", "none"]

CONCURRENCY_MAX = 16
"""From here on a destination that was paused takes as many jobs at once as there are threads."""


@dataclass(frozen=True, slots=True)
class Terms:
    """On which terms a job may be claimed now."""

    is_probe: bool
    pause_count: int
    room: int | None
    """How many jobs may be claimed; None: as many as there are threads."""


def terms(db: Database, destination_id: int, now_ms: int) -> Terms | None:
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


def is_idle(db: Database, destination_id: int, now_ms: int) -> bool:
    """Whether nothing can be sent before the next probe: it is paused, and no probe is due or under way."""
    row = db.execute(
        "select 1 from destination where id = ? and probe_ms > ? and not exists"
        " (select 1 from job where lease_until_ms is not null and +destination_id = destination.id)",
        (destination_id, now_ms),
    ).fetchone()
    return row is not None


def await_probe(db: Database, destination_id: int, until_ms: int) -> None:
    """paused -> paused: a probe is under way, and the next one waits for it."""
    db.execute("update destination set probe_ms = ? where id = ? and probe_ms is not null", (until_ms, destination_id))


def pause(
    db: Database,
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


def resume(db: Database, destination_id: int) -> bool:
    """paused -> fine, one job at a time to begin with."""
    updated = db.execute(
        "update destination set health = 'fine', pause_reason = null, pause_count = 0, probe_ms = null,"
        " concurrency = 1 where id = ? and pause_reason is not null",
        (destination_id,),
    )
    return updated.rowcount == 1


def passed(db: Database, destination_id: int, records: int = 1) -> None:
    """So many were accepted. After a pause each doubles what may be in flight."""
    db.execute(
        "update destination set passes = passes + :records,"
        " concurrency = iif(concurrency << :records < :most, concurrency << :records, null)"
        " where id = :id",
        {"records": records, "most": CONCURRENCY_MAX, "id": destination_id},
    )


def exceed_quota(db: Database, destination_id: int) -> bool:
    """fine -> quota: Helicone goes on to take logs, and keeps their numbers only."""
    updated = db.execute("update destination set health = 'quota' where id = ? and health = 'fine'", (destination_id,))
    return updated.rowcount == 1


def within_quota(db: Database, destination_id: int) -> bool:
    """quota -> fine: a log was stored with its bodies."""
    updated = db.execute("update destination set health = 'fine' where id = ? and health = 'quota'", (destination_id,))
    return updated.rowcount == 1


def take_sample(db: Database, destination_id: int, *, now_ms: int, every_ms: int) -> bool:
    """Whether the job that is delivered now is the one of its time that is to be confirmed."""
    updated = db.execute(
        "update destination set sampled_ms = :now where id = :id"
        # A sample from the future was taken before the clock was set back.
        " and (sampled_ms is null or sampled_ms <= :before or sampled_ms > :now)",
        {"id": destination_id, "now": now_ms, "before": now_ms - every_ms},
    )
    return updated.rowcount == 1


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known about a destination when one of its jobs has failed."""

    is_paused: bool
    peers: Peers
    """What other jobs say of it: succeed, if a record was accepted since this job last failed (or ever, where it never
    did); fail, if another job has failed since a record was last accepted; none, if neither."""
    is_alone: bool
    """No other job waits for it: then nobody else can show whether it is there."""


def evidence(db: Database, destination_id: int, job_id: int) -> Evidence:
    row = db.execute(
        "select d.pause_reason is not null as is_paused, d.passes > coalesce(j.passes_seen, 0) as has_succeeded,"
        " exists (select 1 from job o where o.destination_id = d.id and o.state = 'pending' and o.id <> j.id"
        "  and o.setbacks > 0 and o.passes_seen = d.passes) as is_failed,"
        " (select coalesce(sum(t.jobs), 0) from tally t where t.destination_id = d.id and t.state = 'pending'"
        "  and t.hold_reason = '') <= iif(j.state = 'pending' and j.hold_reason is null, 1, 0) as is_alone"
        " from destination d join job j on j.id = ? where d.id = ?",
        (job_id, destination_id),
    ).fetchone()
    peers: Peers = "fail" if row["is_failed"] else "succeed" if row["has_succeeded"] else "none"
    return Evidence(bool(row["is_paused"]), peers, bool(row["is_alone"]))


def probe_now(db: Database, destination_id: int, now_ms: int) -> bool:
    """paused -> paused, but the next probe may run at once (a worker started, somebody asked for a flush)."""
    updated = db.execute(
        "update destination set probe_ms = ? where id = ? and probe_ms > ?", (now_ms, destination_id, now_ms)
    )
    return updated.rowcount == 1
