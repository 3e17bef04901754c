"""Project folders, by a salted hash: their recorded options, whether and since when they are captured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from app.database.connection import Database
from app.ledger.destinations import STARTING_MS


def of_folders(db: Database) -> set[int]:
    """The destinations that the settings of captured folders mean, as their hooks have last seen them."""
    rows = db.execute("select distinct destination_id as id from folder where destination_id is not null")
    return {row["id"] for row in rows}


def had_jobs(db: Database, folder: str) -> bool:
    """Whether a folder ever had a job, whatever has become of it."""
    row = db.execute(
        "select 1 from session s where s.folder = ? and exists (select 1 from turn t join job j on j.turn_id = t.id"
        " where t.session_id = s.id) limit 1",
        (folder,),
    ).fetchone()
    return row is not None


def remember_folder(
    db: Database, folder: str, destination_id: int, capture_options: Mapping[str, object], now_ms: int
) -> None:
    """Note how a folder is captured, and for which destination."""
    db.execute(
        "insert into folder (hash, destination_id, capture_options, seen_ms, since_ms) values (?, ?, ?, ?, ?)"
        " on conflict (hash) do update set destination_id = excluded.destination_id,"
        " capture_options = excluded.capture_options, seen_ms = excluded.seen_ms"
        " where folder.capture_options <> excluded.capture_options or folder.destination_id is null"
        " or folder.destination_id <> excluded.destination_id",
        (folder, destination_id, json.dumps(capture_options, sort_keys=True), now_ms, now_ms - STARTING_MS),
    )


NEVER_MS = 1 << 62
"""Later than everything: what is captured since then is nothing."""


def stop_capture(db: Database, folder: str) -> None:
    """Nothing that OpenCode writes in the folder from now on counts as missed."""
    db.execute("update folder set since_ms = ? where hash = ? and since_ms < ?", (NEVER_MS, folder, NEVER_MS))


def resume_capture(db: Database, folder: str, now_ms: int) -> None:
    """What OpenCode writes in the folder from now on counts again."""
    db.execute("update folder set since_ms = ? where hash = ? and since_ms = ?", (now_ms, folder, NEVER_MS))


def capture_from(db: Database, folder: str, since_ms: int) -> None:
    """What OpenCode wrote in a folder that is captured counts from then on, if only later things did."""
    db.execute(
        "update folder set since_ms = ? where hash = ? and since_ms > ? and since_ms < ?",
        (since_ms, folder, since_ms, NEVER_MS),
    )


def captured_since_ms(db: Database, folder: str) -> int | None:
    """When capture of a folder began, or was switched on again; NEVER_MS while it is off, None when there was none."""
    row = db.execute("select since_ms from folder where hash = ?", (folder,)).fetchone()
    return None if row is None else int(row["since_ms"])


def is_captured(db: Database, folder: str, destination_id: int | None) -> bool:
    """Whether what is written in the folder is captured now, for this destination; None: for any."""
    row = db.execute(
        "select 1 from folder where hash = :folder and (:destination is null or destination_id = :destination)"
        " and since_ms < :never",
        {"folder": folder, "destination": destination_id, "never": NEVER_MS},
    ).fetchone()
    return row is not None


def folder_options(db: Database, folder: str) -> dict[str, object] | None:
    """The capture options last seen for a folder, None when live capture never saw it."""
    row = db.execute("select capture_options from folder where hash = ?", (folder,)).fetchone()
    return None if row is None else dict(json.loads(row[0]))


def all_folder_options(db: Database) -> dict[str, str]:
    """The capture options last seen, as JSON, by folder."""
    return {row["hash"]: row["capture_options"] for row in db.execute("select hash, capture_options from folder")}


@dataclass(frozen=True, slots=True)
class HeldFolder:
    """A folder whose configuration was not right when a hook saw it last."""

    hash: str
    reason: str
    is_by_files: bool
    """All that is wrong stands in files that whoever looks into the folder finds."""


def held_folders(db: Database) -> list[HeldFolder]:
    rows = db.execute(
        "select hash, capture_options ->> 'held' as reason, capture_options ->> 'heldByFiles' as by_files from folder"
        " where json_extract(capture_options, '$.held') is not null order by reason, hash"
    )
    return [HeldFolder(row["hash"], row["reason"], bool(row["by_files"])) for row in rows]


def release(db: Database, folder: str, capture_options: Mapping[str, object]) -> None:
    """held -> captured as these options say: its files are right."""
    db.execute(
        "update folder set capture_options = ? where hash = ? and json_extract(capture_options, '$.held') is not null",
        (json.dumps(capture_options, sort_keys=True), folder),
    )


def folder_limits(db: Database, option: str) -> dict[str, int]:
    """Limits by folder: what its own files say of `maxSpoolSize`, `maxSpoolAge` or `maxRetries`, where they do."""
    rows = db.execute(
        "select hash, cast(json_extract(capture_options, :path) as bigint) as value from folder"
        " where json_type(capture_options, :path) = 'integer'",
        {"path": f"$.{option}"},
    )
    return {row["hash"]: row["value"] for row in rows}
