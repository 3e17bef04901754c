"""Policy enforcement, the transitions: holds jobs that the settings forbid, drops what was made under looser ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from app.database.connection import Database, transaction
from app.ledger.claims import finish
from app.ledger.job import BATCH, Claim
from app.ledger.versions import forget_contents

_OF_FOLDER = "select id from session where destination_id = :destination and folder = :folder"


def hold(db: Database, claim: Claim, *, due_ms: int, reason: str) -> bool:
    """pending, leased -> pending, held: nothing of its folder may leave now. No attempt was made."""
    with transaction(db):
        db.execute("delete from attempt where job_id = ? and number = ?", (claim.job_id, claim.attempt))
        return finish(
            db,
            claim,
            "due_ms = :due, hold_reason = :reason",
            {"due": due_ms, "reason": reason},
        )


def hold_folder(db: Database, destination_id: int, folder: str, *, due_ms: int, reason: str | None) -> int:
    """pending -> pending, held, or no longer held where there is no reason: of the folder at most BATCH.

    What is in flight is left to whoever carries it.
    """
    return db.execute(
        "update job set due_ms = :due, hold_reason = :reason where id in (select id from job"
        f" where +destination_id = :destination and state = 'pending' and session_id in ({_OF_FOLDER})"
        "  and lease_until_ms is null and hold_reason is not :reason limit :limit)"
        # Once more: it may have been claimed since.
        " and state = 'pending' and lease_until_ms is null and hold_reason is not :reason",
        {"destination": destination_id, "folder": folder, "due": due_ms, "reason": reason, "limit": BATCH},
    ).rowcount


def held_folders(db: Database, destination_id: int) -> list[str]:
    rows = db.execute(
        "select distinct s.folder from job j join session s on s.id = j.session_id"
        " where j.destination_id = ? and j.state = 'pending' and j.hold_reason is not null",
        (destination_id,),
    )
    return [row["folder"] for row in rows]


def held(db: Database, destination_id: int) -> list[tuple[str, int]]:
    """(reason, jobs) of what is held."""
    rows = db.execute(
        "select hold_reason, sum(jobs) as jobs from tally where destination_id = ? and state = 'pending'"
        " and hold_reason <> '' group by hold_reason order by 2 desc, hold_reason",
        (destination_id,),
    )
    return [(row["hold_reason"], row["jobs"]) for row in rows]


def is_all_held(db: Database, destination_id: int) -> bool:
    """Whether whatever waits there is held."""
    row = db.execute(
        "select 1 from tally where destination_id = ? and state = 'pending' and hold_reason = '' limit 1",
        (destination_id,),
    ).fetchone()
    return row is None


def drop_looser(db: Database, destination_id: int, folder: str, made_under: str, now_ms: int) -> int:
    """pending or dead -> dropped (policy): what the folder has that was made under this policy, at most BATCH.

    Dead letters too: somebody may ask to have them sent. What is in flight is left to whoever carries it.
    """
    with transaction(db):
        rows = db.execute(
            "update job set state = 'dropped', drop_reason = 'policy', due_ms = null, finished_ms = :now,"
            " body_bytes = 0, error = null where id in (select id from job where destination_id = :destination"
            "  and state in ('pending', 'dead') and lease_until_ms is null"
            "  and coalesce((select facts from policy where id = job.policy_id), '') = :policy"
            f" and session_id in ({_OF_FOLDER}) limit :limit) and state in ('pending', 'dead')"
            " and lease_until_ms is null returning id",
            {
                "destination": destination_id,
                "folder": folder,
                "policy": made_under,
                "now": now_ms,
                "limit": BATCH,
            },
        ).fetchall()
        forget_contents(db, [row["id"] for row in rows])
    return len(rows)


def is_any_bound(db: Database, destination_id: int) -> bool:
    """Whether there is a job that a change of settings holds, releases, drops or has captured again."""
    row = db.execute(
        "select 1 from tally where destination_id = ?"
        " and (state in ('pending', 'dead') or state = 'dropped' and reason = 'policy') limit 1",
        (destination_id,),
    ).fetchone()
    return row is not None


def made_under(db: Database, destination_id: int) -> list[tuple[str, str]]:
    """(folder, policy) of all that may be posted some day; '' is a policy that was not kept."""
    rows = db.execute(
        "select distinct s.folder, coalesce(p.facts, '') as policy from job j join session s on s.id = j.session_id"
        " left join policy p on p.id = j.policy_id"
        " where j.destination_id = ? and j.state in ('pending', 'dead')",
        (destination_id,),
    )
    return [(row["folder"], row["policy"]) for row in rows]


@dataclass(frozen=True, slots=True)
class Missing:
    """Of one session, the turns that lost their bodies to a stricter policy."""

    session: str
    folder: str
    turns: tuple[str, ...]


def missing(db: Database, destination_id: int, folders: Sequence[str] | None = None) -> list[Missing]:
    """What is to be captured again, of all folders or of these; the newest first, at most BATCH sessions."""
    rows = db.execute(
        "select s.name, s.folder, json_group_array(t.name) as turns from job j join session s on s.id = j.session_id"
        " join turn t on t.id = j.turn_id where +j.destination_id = ? and j.state = 'dropped'"
        " and j.drop_reason = 'policy'"
        " and (? is null or s.folder in (select value from json_each(?)))"
        " group by s.id order by max(j.id) desc limit ?",
        (destination_id, None if folders is None else "", json.dumps(folders or []), BATCH),
    )
    return [Missing(row["name"], row["folder"], tuple(sorted(json.loads(row["turns"])))) for row in rows]
