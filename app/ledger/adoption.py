"""Adoption: moves jobs to another destination, when a key becomes known or takes another's place."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from app.database.connection import Database, Row, lock, transaction
from app.ledger import destinations, incidents
from app.ledger.destinations import Destination
from app.ledger.job import BATCH, Body, Kept, LedgerError, Version, bodies, kept
from app.ledger.versions import forget_contents, insert, supersede_where


def adopt(
    db: Database,
    from_id: int,
    destination_id: int,
    *,
    now_ms: int,
    session: str | None = None,
    folder: str | None = None,
) -> int:
    """Give what waits at one destination to another; returns the number of jobs.

    Of one session only, of one project folder only, or of all.

    Sessions that the destination does not know move whole, unless something of them was sealed at its endpoint under
    yet another key. Of the others the waiting jobs move, as versions like any other: one that is older than what the
    destination has becomes superseded there, and a turn that was sealed does not come. A damaged job becomes dead where
    it is: where it waits nobody would ever claim it and find out.
    """
    moved = 0
    chosen = {"from": from_id, "to": destination_id, "root": session, "folder": folder}
    # A bounded number at a time: each is locked. One that somebody else has moved meanwhile is not found again.
    while names := [row["name"] for row in db.execute(f"select name {_MOVES} order by name limit {BATCH}", chosen)]:
        moved += _move(db, names, chosen)
    while waiting := db.execute(
        "select j.id, j.key, j.facts_ms, j.body_bytes, j.is_history, j.is_recall, j.is_sealed, j.known_marks,"
        " j.redactions, t.name as turn, s.name as session, s.root_name, s.user_id, s.encoding, s.shown_name,"
        " s.folder, coalesce(p.facts, '') as policy from job j join turn t on t.id = j.turn_id"
        " join session s on s.id = j.session_id left join policy p on p.id = j.policy_id"
        " where j.destination_id = ? and j.state = 'pending' and j.lease_until_ms is null"
        " and (? is null or s.root_name = ?) and (? is null or s.folder = ?) order by j.id limit ?",
        (from_id, session, session, folder, folder, BATCH),
    ).fetchall():
        for row in waiting:
            _adopt_job(db, destination_id, row, now_ms)
        moved += len(waiting)
    return moved


_MOVES = (
    "from session where destination_id = :from and not exists"
    " (select 1 from session o where o.destination_id = :to and o.name = session.name)"
    " and not exists (select 1 from session o cross join turn t on t.session_id = o.id"
    "  cross join job j on j.turn_id = t.id and j.is_sealed = 1 and j.state <> 'superseded'"
    "  where o.name = session.name and o.id <> session.id"
    "  and o.destination_id in (select id from destination"
    "   where endpoint in ((select endpoint from destination where id = :to), '')))"
    " and (:root is null or root_name = :root) and (:folder is null or folder = :folder)"
)


def _move(db: Database, names: Sequence[str], chosen: Mapping[str, object]) -> int:
    """Whole sessions, of those that are named; the number of their jobs."""
    with transaction(db):
        for name in names:
            lock(db, f"session {name}")
        rows = db.execute(
            f"update session set destination_id = :to where id in (select id {_MOVES})"
            " and name in (select value from json_each(:names)) and destination_id = :from returning id",
            {**chosen, "names": json.dumps(names)},
        ).fetchall()
        return sum(
            db.execute(
                "update job set destination_id = ? where turn_id in (select id from turn where session_id = ?)",
                (chosen["to"], row["id"]),
            ).rowcount
            for row in rows
        )


def take_over(db: Database, ours: Destination, now_ms: int) -> None:
    """Adopt what waits elsewhere and can only be meant for this destination.

    What was captured before any key was known: while nothing was captured for another key that it might be meant for as
    well. A session of one project must not end up in the other's Helicone: then it waits until its project is captured
    again with a key. And what `adopt_rotated` does.
    """
    if not ours.key_fingerprint:
        return
    everyone = destinations.destinations(db)
    others = [one for one in everyone if one.key_fingerprint and one.id != ours.id and destinations.is_used(db, one.id)]
    for one in everyone:
        is_meant = not one.key_fingerprint and one.endpoint in {"", ours.endpoint} and one.kind == ours.kind
        if is_meant and not any(one.endpoint in {"", other.endpoint} for other in others):
            adopt(db, one.id, ours.id, now_ms=now_ms)
    adopt_rotated(db, ours, now_ms)


def adopt_rotated(db: Database, ours: Destination, now_ms: int) -> None:
    """Adopt what waits for a key that is refused by now, if its own folder was captured with our key since."""
    for from_id, folder in destinations.rotated(db, ours):
        adopt(db, from_id, ours.id, now_ms=now_ms, folder=folder)


def give_up(db: Database, destination_id: int, now_ms: int) -> int:
    """pending or dead -> dropped (purged): all of a destination that nobody is posting; the number of jobs.

    Bodies and attempts go, the keys stay known, so that nothing exports them again by itself.
    """
    given_up = 0
    while True:
        with transaction(db):
            rows = db.execute(
                "update job set state = 'dropped', drop_reason = 'purged', due_ms = null, finished_ms = :now,"
                " body_bytes = 0 where id in (select id from job where destination_id = :destination"
                "  and state = 'dead' union all select id from job where destination_id = :destination"
                "  and state = 'pending' and lease_until_ms is null limit :batch)"
                " and (state = 'dead' or (state = 'pending' and lease_until_ms is null))"
                " and +destination_id = :destination returning id",
                {"now": now_ms, "destination": destination_id, "batch": BATCH},
            ).fetchall()
            forget_contents(db, [row["id"] for row in rows])
            if rows:
                incidents.note_unerased(db, now_ms)
        given_up += len(rows)
        if not rows:
            return given_up


def _adopt_job(db: Database, destination_id: int, row: Row, now_ms: int) -> None:
    """pending -> superseded, once the destination has it; or pending -> dead, when it is damaged."""
    version = Version(
        session=row["session"],
        root=row["root_name"],
        turn=row["turn"],
        key=row["key"],
        last_event_ms=row["facts_ms"],
        user_id=row["user_id"],
        folder=row["folder"],
        policy=row["policy"],
        is_history=bool(row["is_history"]),
        is_recall=bool(row["is_recall"]),
        is_sealed=bool(row["is_sealed"]),
        encoding=row["encoding"],
        session_name=row["shown_name"],
        known_marks=row["known_marks"],
        redactions=row["redactions"],
    )
    try:
        held: Sequence[Body | Kept] = (
            list(bodies(db, row["id"], row["key"])) if row["body_bytes"] else kept(db, row["id"])
        )
    except LedgerError as error:
        db.execute(
            "update job set state = 'dead', due_ms = null, finished_ms = ?, error = ?"
            " where id = ? and state = 'pending'",
            (now_ms, str(error), row["id"]),
        )
        return
    insert(db, destination_id, version, held, now_ms=now_ms)
    with transaction(db):
        # Whom it killed, and how often it was not found, is true wherever it goes.
        db.execute(
            "update job set kills = max(job.kills, o.kills), resends = max(job.resends, o.resends)"
            " from (select kills, resends from job where id = ?) o"
            " where job.destination_id = ? and job.key = ? and job.state = 'pending'",
            (row["id"], destination_id, row["key"]),
        )
        db.execute(
            "insert into footprint (job_id, ids, facts) select j.id, f.ids, f.facts from footprint f, job j"
            " where f.job_id = ? and j.destination_id = ? and j.key = ? on conflict do nothing",
            (row["id"], destination_id, row["key"]),
        )
        supersede_where(db, "id = :job", {"job": row["id"]}, now_ms)
