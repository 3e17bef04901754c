"""Reads the tables of OpenCode 2, `session_v2` and `session_message`, and those of OpenCode 1 beside them.

At its first start OpenCode 2 copies what is in `session`, `message` and `part`, and lets these be from then on; an
OpenCode 1 that is used later writes to them again. Where `message` holds an id, it is the source, so that what was
exported before the migration has the same key after it. What OpenCode 2 has deleted or taken back since stays in
those tables and is not shown; nor are the rows that the migration has added of its own.

Read from OpenCode 2's public description, not yet tried on OpenCode 2.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from app.sources.opencode.rows import Head, Memory, Usage
from app.sources.opencode.tables import HEAD, ID, IS_NAMED, TableRows, fields, head, info, told, weights
from app.sources.opencode.translated import Row, Walk, beside, messages, subagents, walk
from app.sources.opencode.usage import usage_of_messages
from app.transcript.model import Json

NEEDED = {
    "session_v2": {
        *("id", "parent_id", "directory", "title", "version", "revert", "agent"),
        *("time_created", "time_updated", "time_archived", "time_suspended"),
    },
    "session_message": {"id", "session_id", "type", "seq", "time_created", "time_updated", "data"},
    "kv": {"key", "value", "time_updated"},
}
END_MS = 1 << 62
_HEAD = HEAD.format("session_v2")
_CREATED = "coalesce(cast(time_created as integer), 0) as time_created"


@dataclass(frozen=True, slots=True)
class _Mixed:
    """A session's messages of both."""

    v1: dict[str, str]
    """With their turns."""
    walk: Walk
    listed_ms: dict[str, int]
    """Those of both, in order, with their times."""
    written_ms: dict[str, int]
    """By row of OpenCode 2."""


class NewerRows:
    """`Rows` of OpenCode 2's tables."""

    def __init__(self, db: sqlite3.Connection, memory: Memory, v1: TableRows | None) -> None:
        self._db = db
        self._memory = memory
        self._v1 = v1
        self._migrated_ms = _migrated_ms(db)
        self._mixed: dict[str, _Mixed] = {}

    def heads(self, directory: str | None = None, among: Collection[str] | None = None) -> list[Head]:
        rows = self._db.execute(f"{_HEAD} where {IS_NAMED} and (? is null or directory = ?)", (directory, directory))
        found = [head(row) for row in rows if among is None or row[0] in among]
        if self._v1 is not None:
            found += [one for one in self._v1.heads(directory, among) if self._is_only_v1(one)]
        return sorted(found, key=lambda one: (one.created_ms, one.id))

    def head(self, session: str) -> Head | None:
        row = self._row(session, _HEAD)
        if row is not None:
            return head(row)
        found = self._v1.head(session) if self._v1 is not None else None
        return found if found is not None and self._is_only_v1(found) else None

    def below(self, session: str) -> list[str]:
        rows = self._db.execute(f"select {ID} as name from session_v2 where parent_id = ? order by id", (session,))
        found = [row["name"] for row in rows]
        old = self._v1.below(session) if self._v1 is not None else []
        return found + [name for name in old if name not in found and self.head(name) is not None]

    def info(self, session: str) -> dict[str, Json]:
        row = self._row(session)
        if row is None:
            return self._old.info(session)
        shown = info(row, row["parent_id"])
        if row["parent_id"] is not None and not self._is_in_v1(session):
            del shown["version"]  # an export does not tell it, and a subagent's counts in its parent's key
        return shown

    def listed(self, session: str) -> dict[str, str]:
        mixed = self._of(session)
        turns = mixed.v1 | mixed.walk.turn_of
        return {name: turns[name] for name in mixed.listed_ms}

    def unreadable(self, session: str) -> Collection[str]:
        return self._v1.unreadable(session) if self._v1 is not None else ()

    def undated(self, session: str) -> Collection[str]:
        return self._v1.undated(session) if self._v1 is not None else ()

    def messages(self, session: str, names: list[str]) -> list[Json]:
        mixed = self._of(session)
        old = [name for name in names if name in mixed.v1]
        found = dict(zip(old, self._old.messages(session, old) if old else [], strict=True))
        found |= self._translated(session, mixed, [name for name in names if name not in mixed.v1])
        return [found[name] for name in names]

    def calls(self, session: str, messages: Collection[str]) -> dict[str, tuple[str, ...]]:
        mixed = self._of(session)
        old = [name for name in messages if name in mixed.v1]
        found = self._old.calls(session, old) if old else {}
        known = self._memory.of(session).calls
        found |= {name: known.get(name, ()) for name in messages if name not in found}
        rows = self._db.execute(
            "select id, data from session_message where id in (select value from json_each(?))"
            " and type = 'assistant' and instr(data, '\"sessionID\"')",
            (json.dumps([name for name in messages if name not in known and name not in mixed.v1]),),
        )
        for row in rows:
            data = fields(row["data"])
            found[row["id"]] = tuple(subagents(data))
            time = data.get("time")
            if isinstance(time, dict) and time.get("completed") is not None:
                known[row["id"]] = found[row["id"]]
        return {name: found[name] for name in messages}

    def answers(self, session: str) -> Iterable[tuple[str, int, str]]:
        return self._v1.answers(session) if self._v1 is not None else ()

    def created_ms(self, session: str) -> dict[str, int]:
        return self._of(session).listed_ms

    def weighed(self, session: str, messages: list[str]) -> Iterable[tuple[str, int, int]]:
        mixed = self._of(session)
        old = [name for name in messages if name in mixed.v1]
        if old:
            yield from self._old.weighed(session, old)
        wanted = set(messages)
        for name, message in mixed.walk.owner.items():
            if message in wanted:
                yield message, 1, mixed.written_ms[name]

    def weights(self, sessions: Collection[str]) -> dict[str, tuple[int, int]]:
        found = weights(self._db, {"session_v2": "id", "session_message": "session_id"}, sessions)
        old = self._v1.weights(sessions) if self._v1 is not None else {}
        for name, (count, updated_ms) in old.items():
            found[name] = found[name][0] + count, max(found[name][1], updated_ms)
        return found

    def usage(self, since_ms: int, among: Collection[str] | None = None) -> Iterable[Usage]:
        return usage_of_messages(self, since_ms, among)

    @property
    def _old(self) -> TableRows:
        assert self._v1 is not None  # noqa: S101 - whoever asks has an id from there
        return self._v1

    def _row(self, session: str, select: str = "select * from session_v2 s") -> sqlite3.Row | None:
        row: sqlite3.Row | None = self._db.execute(f"{select} where id = ?", (session,)).fetchone()
        return row

    def _is_in_v1(self, session: str) -> bool:
        return self._v1 is not None and self._v1.head(session) is not None

    def _is_only_v1(self, one: Head) -> bool:
        """One that OpenCode 1 has made since, or that is not copied yet; not one that OpenCode 2 has deleted."""
        is_known = self._row(one.id, "select 1 from session_v2 s") is not None
        return not is_known and (self._migrated_ms is None or one.created_ms > self._migrated_ms)

    def _of(self, session: str) -> _Mixed:
        if session not in self._mixed:
            self._mixed[session] = self._read(session)
        return self._mixed[session]

    def _read(self, session: str) -> _Mixed:
        rows = self._db.execute(
            f"select {ID} as id, cast(type as text) as type, {_CREATED},"
            " coalesce(cast(time_updated as integer), 0) as time_updated"
            " from session_message where session_id = ? order by seq",
            (session,),
        ).fetchall()
        v1 = self._v1.listed(session) if self._v1 is not None else {}
        if v1 and self._migrated_ms is not None and self._row(session) is not None:
            v1 = self._left(session, v1, {row["id"] for row in rows})
        if self._is_in_v1(session):
            # Beside what it has copied the migration has added rows of its own.
            early_ms = END_MS if self._migrated_ms is None else self._migrated_ms
            rows = [row for row in rows if row["id"] in v1 or row["time_created"] > early_ms]
        walked = walk(((row["id"], row["type"]) for row in rows), v1)
        times_ms = {row["id"]: row["time_created"] for row in rows if row["id"] in walked.turn_of}
        if v1:
            times_ms |= {name: ms for name, ms in self._old.created_ms(session).items() if name in v1}
        ordered = sorted(times_ms.items(), key=lambda one: (one[1], one[0]))
        return _Mixed(v1, walked, dict(ordered), {row["id"]: row["time_updated"] for row in rows})

    def _left(self, session: str, v1: dict[str, str], kept: set[str]) -> dict[str, str]:
        """Without the turns that OpenCode 2 has taken back: it deletes the rows from one on."""
        names = list(v1)
        created_ms = self._old.created_ms(session)
        last = max((at for at, name in enumerate(names) if name in kept), default=-1)
        gone = {name for name in names[last + 1 :] if v1[name] == name and created_ms[name] <= (self._migrated_ms or 0)}
        return {name: turn for name, turn in v1.items() if turn not in gone}

    def _translated(self, session: str, mixed: _Mixed, names: list[str]) -> dict[str, Json]:
        row = self._row(session)
        if row is None:
            return {}
        rows = self._rows({*names, *beside(names, mixed.walk)})
        return messages(names, mixed.walk, rows, told(row["agent"]), is_suspended=row["time_suspended"] is not None)

    def _rows(self, names: Collection[str]) -> dict[str, Row]:
        rows = self._db.execute(
            f"select id, cast(type as text) as type, {_CREATED}, data from session_message"
            " where id in (select value from json_each(?))",
            (json.dumps([*names]),),
        )
        found = {row["id"]: Row(row["id"], row["type"], row["time_created"], fields(row["data"])) for row in rows}
        # One that cannot be asked for, with no text as its id or one that is not in UTF-8, is of no known kind.
        return {name: found[name] if name in found else Row(name, "", 0, {}) for name in names}


def _migrated_ms(db: sqlite3.Connection) -> int | None:
    """When all of OpenCode 1 was copied; None where nothing was, or not yet all."""
    row = db.execute(
        "select value, coalesce(cast(time_updated as integer), 0) as time_updated from kv where key = 'migration.v1-v2'"
    ).fetchone()
    is_done = row is not None and fields(row["value"]).get("phase") == "completed"
    return row["time_updated"] if is_done else None
