"""Pruning, the transitions: drops jobs that are too old or have no room, bounds what is kept of others."""

from __future__ import annotations

import json

from app.database.connection import Database, transaction
from app.ledger import counters, limits
from app.ledger.confirmations import forget_session
from app.ledger.eviction import HELD, OF_ROOM, counted_bytes, excess_of_folders, held_bytes
from app.ledger.job import BATCH
from app.ledger.limits import AGE_MS, NO_LIMITS, Limits
from app.ledger.versions import forget_contents
from app.runtime import failpoint

_CAN_GO = f"{HELD} and {OF_ROOM} and j.lease_until_ms is null"
ACKNOWLEDGEMENT_AGE_MS_MAX = 90 * 24 * 3_600_000
"""A turn that changes later than this is sent again whole, under the same ids."""


def drop_aged(db: Database, now_ms: int, age_ms_max: int, of_folders: Limits = NO_LIMITS) -> int:
    """pending -> dropped (age), at most BATCH: enqueued longer than `age_ms_max` ago and tried since it came of age.

    The jobs of a folder that is in `of_folders` have its age instead. A laptop that slept for a month must try once
    before it gives up. A recall is never too old: what it is to overwrite stays at Helicone.
    """
    return _drop(
        db,
        "age",
        now_ms,
        # First what is too old by the shortest of the limits: only of those it is looked up which one is theirs.
        "id in (select j.id from destination d cross join job j on j.destination_id = d.id"
        "  where j.state = 'pending' and j.enqueued_ms < :before)"
        f" and is_recall = 0 and enqueued_ms + {AGE_MS} < :now"
        f" and enqueued_ms + {AGE_MS} <= max(coalesce(attempted_ms, 0), (select coalesce(d.probed_ms, 0)"
        " from destination d where d.id = job.destination_id))",
        {
            "before": now_ms - min(age_ms_max, *of_folders.values()) if of_folders else now_ms - age_ms_max,
            "age": age_ms_max,
            "ages": limits.as_json(of_folders),
        },
    )


def drop_oversize(
    db: Database, now_ms: int, bytes_max: int, of_folders: Limits = NO_LIMITS, room: int | None = None
) -> int:
    """pending or dead -> dropped (size), oldest first, at most BATCH, until the held bodies fit into `bytes_max`.

    Before that those of each folder in `of_folders`, until they fit into its own limit. What is in flight stays, and
    others go in its place. Delivered bodies, which are held to be confirmed, are not counted:
    `give_up_confirmations` goes before, and `give_up_bodies`. Nor are recalls dropped.
    """
    dropped = 0
    if excess := excess_of_folders(db, of_folders, room):
        arguments: dict[str, object] = {"limits": limits.as_json(excess), "room": room}
        dropped += _drop(db, "size", now_ms, limits.oldest(_CAN_GO, "j.enqueued_ms"), arguments)
    # Nothing is dropped because of a sum that was kept: it is counted first.
    if held_bytes(db, room) > bytes_max and (whole := counted_bytes(db, room) - bytes_max) > 0:
        dropped += _drop(
            db,
            "size",
            now_ms,
            "id in (select cast(value as bigint) from json_each(:jobs)) and body_bytes > 0 and is_recall = 0",
            {"jobs": json.dumps(_oldest(db, whole, room))},
        )
    return dropped


def _oldest(db: Database, excess: int, room: int | None) -> list[int]:
    """Of those that can go the first ones, as many as free so many bytes; at most BATCH."""
    chosen: list[int] = []
    rows = db.execute(
        f"select id, body_bytes from job j where {_CAN_GO} order by enqueued_ms, id limit :limit",
        {"limit": BATCH, "room": room},
    )
    for row in rows:
        if excess <= 0:
            break
        chosen.append(row["id"])
        excess -= row["body_bytes"]
    return chosen


def drop_session(db: Database, destination_id: int, session: str, now_ms: int) -> int:
    """pending or dead -> dropped (deleted): the session was deleted in OpenCode before it was delivered.

    What is delivered and waits to be confirmed is not sent again. A recall stays: it takes back what is at Helicone.
    """
    forget_session(db, destination_id, session)
    dropped = 0
    while batch := _drop(
        db,
        "deleted",
        now_ms,
        "+state in ('pending', 'dead') and is_recall = 0 and turn_id in (select t.id from session s"
        " join turn t on t.session_id = s.id where s.destination_id = :destination and s.name = :session)",
        {"destination": destination_id, "session": session},
        leased_too=True,
    ):
        dropped += batch
    return dropped


def _drop(
    db: Database,
    reason: str,
    now_ms: int,
    condition: str,
    arguments: dict[str, object],
    *,
    leased_too: bool = False,
) -> int:
    free = "1 = 1" if leased_too else "lease_until_ms is null"
    with transaction(db):
        rows = db.execute(
            "update job set state = 'dropped', drop_reason = :reason, due_ms = null, finished_ms = :now, body_bytes = 0"
            f" where id in (select id from job where ({condition}) and {free} order by enqueued_ms, id limit :limit)"
            # Once more: it may be claimed or a recall by now. (The plus keeps SQLite from looking for them among all
            # that is pending.)
            f" and +state in ('pending', 'dead') and is_recall = 0 and {free} returning id",
            {**arguments, "reason": reason, "now": now_ms, "limit": BATCH},
        ).fetchall()
        forget_contents(db, [row["id"] for row in rows])
        counters.bump(db, "lost", {reason: len(rows)}, now_ms)
        failpoint.reach("prune.dropping")
    return len(rows)


def forget_acknowledgements(db: Database, now_ms: int) -> int:
    """Those of delivered turns that are too old to change; at most BATCH turns' worth a time.

    They tell what need not be sent again when a turn comes in a newer version, and are what would grow for ever.
    """
    before_ms = now_ms - ACKNOWLEDGEMENT_AGE_MS_MAX
    return db.execute(
        "delete from acknowledgement where (turn_id, request_id) in (select a.turn_id, a.request_id"
        " from acknowledgement a where a.acknowledged_ms < ? and not exists (select 1 from job j"
        "  where j.turn_id = a.turn_id and j.state <> 'superseded' and j.state in ('pending', 'dead')) limit ?)",
        (before_ms, 20 * BATCH),
    ).rowcount
