"""Maintenance, the transitions: takes back leases of dead workers; finds what is due; whether to trust the clock."""

from __future__ import annotations

import json
from collections.abc import Collection

from app.database.connection import Database, transaction
from app.ledger import flow, folders, incidents
from app.ledger.claims import FIRST_DUE, IS_FREE, ISOLATED_DUE, ISOLATED_KILLS, is_isolated_due
from app.ledger.job import BATCH
from app.runtime import failpoint

KILLS_MAX = 5
"""Attempts that may end with their worker's death before the job is taken for the killer."""
AHEAD_MS_MAX = 2 * 3_600_000
"""Nothing is put off for longer: a server may ask for an hour."""
LEASE_AHEAD_MS_MAX = 600_000
UNSEEN_MS = 10_000
"""A lease that ran out longer ago than this did so while nobody looked: the machine slept, or the clock was set."""
JUMP_MS = 600_000
"""The clock is noted every minute while a worker runs."""
STEADY_MS = 3_600_000
"""Nothing is too old before the clock has gone on for so long: it may have been wrong, or the network not up yet."""


def leasing_workers(db: Database) -> list[str]:
    rows = db.execute("select distinct worker from job where lease_until_ms is not null limit ?", (BATCH,)).fetchall()
    return [row["worker"] for row in rows]


def recover(db: Database, now_ms: int, dead_workers: Collection[str] = ()) -> int:
    """leased, but the lease ran out or its worker is dead -> due again, or dead after KILLS_MAX of these.

    Counted against the job is the death of its worker, and a lease that ran out under the eyes of a worker: the thread
    that had it hangs. A lease that was found long after it ran out says nothing about the job.
    A job that is suspected of being the reason waits longer each time, so that its neighbours flow meanwhile. Where one
    of them was the probe of a paused destination, another may ask at once.
    """
    workers = json.dumps(sorted(dead_workers))
    died = "worker in (select value from json_each(:workers))"
    orphaned = f"lease_until_ms is not null and (lease_until_ms <= :now or {died})"
    # The plus, here and below: by lease and id, not among all that is pending.
    charged = f"(+state = 'pending' and ({died} or lease_until_ms > :unseen))"
    arguments = {
        "now": now_ms,
        "unseen": now_ms - UNSEEN_MS,
        "workers": workers,
        "kills": KILLS_MAX - 1,
        "limit": BATCH,
        "isolated": ISOLATED_KILLS,
    }
    if db.execute(f"select 1 from job where {orphaned} limit 1", arguments).fetchone() is None:
        return 0
    with transaction(db):
        dead = db.execute(
            "update job set state = 'dead', due_ms = null, lease_until_ms = null, worker = null, finished_ms = :now,"
            f" kills = kills + 1, error = 'its worker died or hung {KILLS_MAX} times'"
            f" where id in (select id from job where {orphaned} and {charged} limit :limit)"
            # Once more, here and below: another watch may have taken it back, and somebody claimed it since.
            f" and {orphaned} and {charged} and kills >= :kills returning destination_id",
            arguments,
        ).fetchall()
        freed = db.execute(
            f"update job set lease_until_ms = null, worker = null, kills = kills + iif({charged}, 1, 0),"
            f" due_ms = iif(state = 'pending', :now + iif(kills + iif({charged}, 1, 0) < :isolated, 0,"
            f"  1000 << cast(kills + iif({charged}, 1, 0) - :isolated as integer)), null)"
            f" where id in (select id from job where {orphaned} limit :limit) and {orphaned}"
            " returning destination_id",
            arguments,
        ).fetchall()
        for destination_id in sorted({row["destination_id"] for row in (*dead, *freed)}):
            flow.probe_now(db, destination_id, now_ms)
        failpoint.reach("recover.freeing")
    return len(dead) + len(freed)


# The latest of each destination are at the end of an index.
_OF_DESTINATIONS = "id in (select j.id from destination d cross join job j on j.destination_id = d.id where {which})"
# And once more what may have changed since they were chosen. (The plus: by their ids.)
_AHEAD = (
    (
        "job",
        "due_ms = :now",
        _OF_DESTINATIONS.format(which="j.due_ms > :ahead and j.state = 'pending'") + " and +due_ms > :ahead",
    ),
    # Whoever has it may be in the middle of a POST, and renews it then.
    ("job", "lease_until_ms = :lease_ahead", "lease_until_ms > :lease_ahead"),
    ("destination", "probe_ms = :now", "probe_ms > :ahead"),
    # Delivered before the clock was set back: when it is looked for is counted from its delivery.
    (
        "job",
        "confirm_ms = :now, finished_ms = :now",
        _OF_DESTINATIONS.format(which="j.confirm_ms > :ahead and j.finished_ms > :ahead") + " and +confirm_ms > :ahead",
    ),
    ("confirmation", "retry_ms = :now", "retry_ms > :ahead"),
    # When capture began. NEVER_MS is no time: capture is switched off.
    ("folder", "since_ms = :now", f"since_ms > :ahead and since_ms < {folders.NEVER_MS}"),
)
_IS_ANY_AHEAD = "select " + " or ".join(f"exists (select 1 from {table} where {ahead})" for table, _, ahead in _AHEAD)


def reset_future_times(db: Database, now_ms: int) -> int:
    """Times far ahead, which only a clock that was wrong can have set -> now; leases -> what they may be at the most.

    Returns the number of rows mended.
    """
    arguments = {"now": now_ms, "ahead": now_ms + AHEAD_MS_MAX, "lease_ahead": now_ms + LEASE_AHEAD_MS_MAX}
    # Looked first: an update would take the write lock each time, for nothing.
    if not db.execute(_IS_ANY_AHEAD, arguments).fetchone()[0]:
        return 0
    return sum(
        db.execute(f"update {table} set {changes} where {is_ahead}", arguments).rowcount
        for table, changes, is_ahead in _AHEAD
    )


def steady_ms(db: Database, now_ms: int) -> int:
    """Note what the clock says; for how long it has gone on without a jump.

    A jump is a step back, or a time in which nobody noted anything: the machine slept, or no worker ran.
    """
    known = db.execute("select name, value from meta where name in ('clock_seen_ms', 'clock_steady_ms')").fetchall()
    times_ms = {row["name"]: int(row["value"]) for row in known}
    seen_ms = times_ms.get("clock_seen_ms", now_ms)
    since_ms = times_ms.get("clock_steady_ms", 0)
    if not seen_ms - JUMP_MS <= now_ms <= seen_ms + JUMP_MS:
        since_ms = now_ms
    with transaction(db):
        db.executemany(
            "insert into meta (name, value) values (?, ?) on conflict (name) do update set value = excluded.value",
            [("clock_seen_ms", str(now_ms)), ("clock_steady_ms", str(since_ms))],
        )
        if now_ms < seen_ms - JUMP_MS:
            incidents.note(db, "the clock was set back", now_ms)
    return now_ms - since_ms


def trusted_age_ms(age_ms_max: int, steady_for_ms: int) -> int:
    """`age_ms_max` once the clock has gone on for as long, or for STEADY_MS; before, NEVER_MS: nothing is too old."""
    return age_ms_max if steady_for_ms >= min(STEADY_MS, age_ms_max) else folders.NEVER_MS


_DUE_SESSIONS = (
    f"select ({FIRST_DUE.format(column='j.key')}) as key from waiting w where w.destination_id = :destination"
    f" and w.is_history = :is_history and w.due_ms <= :now and {IS_FREE.format(of='w')}"
    # Once, where both is due.
    " and not exists (select 1 from waiting o where o.session_id = w.session_id and o.is_history < w.is_history"
    "  and o.due_ms <= :now) order by w.due_ms, w.session_id limit :limit"
)
_ISOLATED = (
    f"select j.session_id, j.key from job j where {ISOLATED_DUE} and {IS_FREE.format(of='j')}"
    " order by j.is_history desc, j.id desc"
)


def to_wake(db: Database, destination_id: int, now_ms: int, limit: int, woken: Collection[str] = ()) -> list[str]:
    """Keys of due jobs, one per session, those due for the longest time first; but not those that are `woken` already.

    No more than the destination takes now: while it is paused one key when its probe is due, and few after that.
    Sessions in which something live is due come before those that are history.
    """
    terms = flow.terms(db, destination_id, now_ms)
    if terms is None:
        return []
    room = limit if terms.room is None else min(limit, terms.room)
    arguments = {"destination": destination_id, "now": now_ms, "limit": room + len(woken)}
    if is_isolated_due(db, destination_id, now_ms):
        # Few; of a session the last one that is read stays.
        found = list({row["session_id"]: row["key"] for row in db.execute(_ISOLATED, arguments)}.values())
    else:
        found = [row["key"] for row in db.execute(_DUE_SESSIONS, {**arguments, "is_history": 0})]
        if len(found) < arguments["limit"]:
            found += [row["key"] for row in db.execute(_DUE_SESSIONS, {**arguments, "is_history": 1})]
    return [key for key in found if key not in woken][:room]


def first_due_ms(db: Database) -> dict[int, int]:
    """By destination, when the first of the jobs is due that wait there; without those at which nothing does."""
    rows = db.execute("select destination_id, min(due_ms) as due_ms from waiting group by destination_id")
    return {row["destination_id"]: row["due_ms"] for row in rows}


def next_due_ms(db: Database, destination_id: int, now_ms: int) -> int | None:
    """When the next job in backoff becomes due, None when none waits for a time."""
    row = db.execute(
        "select min(due_ms) from job where destination_id = ? and state = 'pending' and due_ms > ?",
        (destination_id, now_ms),
    ).fetchone()
    return None if row[0] is None else int(row[0])


def next_of_session(db: Database, destination_id: int, session: str, now_ms: int) -> str | None:
    """The key of a job of the session that is due, if there is one: it stands for the session, as in `to_wake`."""
    row = db.execute(
        f"select ({FIRST_DUE.format(column='j.key')}) as key from session s"
        " join waiting w on w.session_id = s.id and w.due_ms <= ?"
        " where s.destination_id = ? and s.name = ? order by w.is_history limit 1",
        (now_ms, destination_id, session),
    ).fetchone()
    return None if row is None else str(row["key"])
