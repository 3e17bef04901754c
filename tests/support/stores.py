"""OpenCode's own store, written as OpenCode 1.18 writes it: SQLite with a write-ahead log that stays open as it lives.

`put` takes what the plugin's snapshots and `opencode export` show, so that any of them can be read by a hook.
"""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from app.runtime import clock

Fields = dict[str, Any]

_TIMES = "time_created integer not null, time_updated integer not null"
_COUNTS = "input output reasoning cache_read cache_write"
_INSIDE = "references session(id) on delete cascade"
TABLES = f"""
create table if not exists project (id text primary key, worktree text not null, vcs text, name text, icon_url text,
    icon_color text, {_TIMES}, time_initialized integer, sandboxes text not null, commands text);
create table if not exists session (id text primary key,
    project_id text not null references project(id) on delete cascade, parent_id text, slug text not null,
    directory text not null, title text not null, version text not null, share_url text, summary_additions integer,
    summary_deletions integer, summary_files integer, summary_diffs text, revert text, permission text, {_TIMES},
    time_compacting integer, time_archived integer, workspace_id text, path text, agent text, model text,
    cost real default 0 not null, {", ".join(f"tokens_{one} integer default 0 not null" for one in _COUNTS.split())},
    metadata text);
create table if not exists message (id text primary key, session_id text not null {_INSIDE}, {_TIMES},
    data text not null);
create table if not exists part (id text primary key, message_id text not null references message(id) on delete cascade,
    session_id text not null, {_TIMES}, data text not null);
create index if not exists session_project_idx on session (project_id);
create index if not exists session_parent_idx on session (parent_id);
create index if not exists message_session_time_created_id_idx on message (session_id, time_created, id);
create index if not exists part_session_idx on part (session_id);
create index if not exists part_message_id_id_idx on part (message_id, id);
"""

# A row that is as it was is not touched: its `time_updated` tells when it changed.
_AGAIN = (
    " on conflict (id) do update set data = excluded.data,"
    " time_updated = max(excluded.time_updated, time_updated + 1) where data <> excluded.data"
)
_MESSAGE = "insert into message values (?, ?, ?, ?, ?)" + _AGAIN  # noqa: S608 - all of it is here
_PART = "insert into part values (?, ?, ?, ?, ?, ?)" + _AGAIN  # noqa: S608 - all of it is here
_SESSION = (
    "insert into session (id, project_id, parent_id, slug, directory, title, version, revert, time_created,"
    " time_updated, time_archived) values (?, 'project', ?, 'slug', ?, ?, ?, ?, ?, ?, ?)"
    " on conflict (id) do update set parent_id = excluded.parent_id, directory = excluded.directory,"
    " title = excluded.title, version = excluded.version, revert = excluded.revert,"
    " time_archived = excluded.time_archived, time_updated = max(excluded.time_updated, time_updated + 1)"
    " where (parent_id, directory, title, version, revert, time_archived) is not"
    " (excluded.parent_id, excluded.directory, excluded.title, excluded.version, excluded.revert,"
    " excluded.time_archived) or excluded.time_updated > time_updated"
)


class WrittenStore:
    """The store that a live OpenCode has open. (Of a message's parts none stays without it: SQLite sees to that.)"""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        self._db.execute("pragma foreign_keys = on")
        if not self._db.execute("select 1 from sqlite_master where name = 'part'").fetchone():
            self._db.execute("pragma journal_mode = wal")
            self._db.executescript(TABLES)

    def put(self, snapshot: Fields, *, at_ms: int | None = None, whole: bool = False) -> str:
        """Write the snapshot's sessions, all at once; the root's id.

        What changed, and only that, is marked as written at `at_ms` (now). Messages and parts that were there and that
        the snapshot does not show are left, or removed where it is said to be `whole`.
        """
        at_ms = clock.now_ms() if at_ms is None else at_ms
        self._db.execute("begin immediate")
        with self._db:
            self._db.execute(
                "insert or ignore into project (id, worktree, vcs, time_created, time_updated, sandboxes)"
                " values ('project', '/', 'git', ?, ?, '[]')",
                (at_ms, at_ms),
            )
            for entry in snapshot["sessions"]:
                self._put(entry, at_ms, whole=whole)
        return str(snapshot["root"])

    def _put(self, entry: Fields, at_ms: int, *, whole: bool) -> None:
        info = entry["info"]
        revert = json.dumps(info["revert"]) if "revert" in info else None
        text = [_text(info.get(name, "")) for name in ("directory", "title", "version")]
        time = info.get("time", {})
        # What `opencode export` shows as updated is this column: unlike those of messages and parts, it is not ours.
        times = [time.get("created", at_ms), time.get("updated", time.get("created", at_ms)), time.get("archived")]
        self._db.execute(_SESSION, [info["id"], info.get("parentID"), *text, revert, *times])
        messages, parts = [], []
        for message in entry["messages"]:
            told = message["info"]
            created_ms = told.get("time", {}).get("created", at_ms)
            messages.append(told["id"])
            row = [told["id"], info["id"], created_ms, at_ms, _without(told, "id", "sessionID")]
            self._db.execute(_MESSAGE, row)
            (owner,) = self._db.execute("select session_id from message where id = ?", (told["id"],)).fetchone()
            assert owner == info["id"], "a message of two sessions"
            for part in message["parts"]:
                parts.append(part["id"])
                row = [part["id"], told["id"], info["id"], at_ms, at_ms, _without(part, "id", "messageID", "sessionID")]
                self._db.execute(_PART, row)
        if whole:
            for table, shown in (("part", parts), ("message", messages)):
                self._db.execute(
                    f"delete from {table} where session_id = ? and id not in (select value from json_each(?))",  # noqa: S608 - names from above
                    (info["id"], json.dumps(shown)),
                )

    def delete(self, session: str) -> None:
        """The session with those below it, as OpenCode deletes one."""
        self._db.execute(
            "with recursive below(id) as (select ? union select s.id from session s join below b on s.parent_id = b.id)"
            " delete from session where id in (select id from below)",
            (session,),
        )

    def close(self) -> None:
        """OpenCode ends, and with the last one the write-ahead log."""
        self._db.close()


def put(path: Path, *snapshots: Fields, at_ms: int | None = None, whole: bool = False) -> Path:
    """As `WrittenStore.put`, by an OpenCode that has ended since."""
    with closing(WrittenStore(path)) as store:
        for snapshot in snapshots:
            store.put(snapshot, at_ms=at_ms, whole=whole)
    return path


def _text(value: object) -> str:
    """As a column has it: without halves of characters."""
    return str(value).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _without(value: Fields, *names: str) -> str:
    """As `JSON.stringify`: letters as they are, and halves of characters escaped."""
    told = json.dumps({name: inner for name, inner in value.items() if name not in names}, ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", told)
