"""The tables `session`, `message` and `part` of OpenCode 1.2 to 1.18.

A row's ids and its `data` together are one `info` or one part of what `opencode export` prints: messages in the order
of creation time and id, parts in that of their ids (OpenCode 1.18.33). A notice asks for little: of a long session all
ids are listed, from an index, and what was learned of a message before is remembered as long as it cannot change.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator

from app.opencode.rows import Head, Memory, turn_of
from app.transcript import Json

IS_TIME = "time_updated between 0 and 253402300799999"
"""Up to the year 9999. A row with something else there has no say in when a session changed."""
NEEDED = {
    "session": {"id", "parent_id", "directory", "title", "version", "time_created", "time_updated", "time_archived"},
    "message": {"id", "session_id", "time_created", "time_updated", "data"},
    "part": {"id", "message_id", "session_id", "time_updated", "data"},
}
# A row that is not JSON costs its own session, where it is read, and no question about others.
_PARENT = "iif(json_valid(m.data) and json_type(m.data, '$.parentID') = 'text', m.data ->> '$.parentID', null)"
_ROLE = "iif(json_valid(m.data), json_extract(m.data, '$.role'), null)"
_CWD = "iif(json_valid(m.data), json_extract(m.data, '$.path.cwd'), null)"
_COMPLETED = "iif(json_valid(m.data), json_extract(m.data, '$.time.completed'), null)"
_TYPE = "iif(json_valid(p.data), json_extract(p.data, '$.type'), null)"
_CALLED = "iif(json_valid(p.data), json_extract(p.data, '$.state.metadata.sessionId'), null)"
_HEAD = (
    "select id, (select p.id from session p where p.id = s.parent_id) as parent, directory,"
    " cast(time_created as integer), cast(time_updated as integer) from session s"
)
_WRITTEN = f"count(*) as rows, coalesce(max(iif({IS_TIME}, time_updated, 0)), 0) as updated_ms"


class TableRows:
    """As `Rows` has it."""

    def __init__(self, db: sqlite3.Connection, memory: Memory) -> None:
        self._db = db
        self._memory = memory

    def heads(self, directory: str | None = None) -> list[Head]:
        rows = self._db.execute(
            f"{_HEAD} where ? is null or directory = ? order by time_created, id", (directory, directory)
        )
        return [_head(row) for row in rows]

    def head(self, session: str) -> Head | None:
        row = self._db.execute(f"{_HEAD} where id = ?", (session,)).fetchone()
        return None if row is None else _head(row)

    def below(self, session: str) -> list[str]:
        rows = self._db.execute("select id from session where parent_id = ? order by id", (session,))
        return [row["id"] for row in rows]

    def info(self, session: str) -> dict[str, Json]:
        row = self._db.execute("select * from session where id = ?", (session,)).fetchone()
        return info(row, row["parent_id"])

    def listed(self, session: str) -> dict[str, str]:
        known = self._memory.of(session)
        rows = self._db.execute("select id from message where session_id = ? order by time_created, id", (session,))
        names = [row["id"] for row in rows]
        told = self._db.execute(
            f"select m.id, {_ROLE} as role, {_PARENT} as parent from json_each(?) w join message m on m.id = w.value",
            (json.dumps([name for name in names if name not in known.turn_of]),),
        )
        for row in told:
            known.turn_of[row["id"]] = turn_of(row["id"], row["role"], row["parent"])
            if row["role"] not in {"user", "assistant"}:
                known.unreadable.add(row["id"])
        return {name: known.turn_of[name] for name in names}

    def unreadable(self, session: str) -> Collection[str]:
        return self._memory.of(session).unreadable

    def messages(self, session: str, names: list[str]) -> list[Json]:
        found: list[Json] = []
        rows = self._db.execute(
            "select m.id, m.data from json_each(?) w join message m on m.id = w.value order by w.key",
            (json.dumps(names),),
        ).fetchall()
        for message in rows:
            ids = {"messageID": message["id"], "sessionID": session}
            of_message = self._db.execute(
                "select id, data from part where message_id = ? order by id", (message["id"],)
            )
            parts: list[Json] = [{**fields(part["data"]), "id": part["id"], **ids} for part in of_message]
            told = {**fields(message["data"]), "id": message["id"], "sessionID": session}
            found.append({"info": told, "parts": parts})
        return found

    def calls(self, session: str, messages: Collection[str]) -> dict[str, tuple[str, ...]]:
        known = self._memory.of(session).calls
        unread = [name for name in messages if name not in known]
        named: dict[str, list[str]] = {name: [] for name in unread}
        wanted = json.dumps(unread)
        rows = self._db.execute(
            f"select p.message_id, {_CALLED} as name from json_each(?) w join part p on p.message_id = w.value"
            # Most parts are long and name nobody: not every one is taken apart.
            f" where instr(p.data, '\"sessionId\"') and {_TYPE} = 'tool' order by w.key, p.id",
            (wanted,),
        )
        for row in rows:
            if isinstance(row["name"], str):
                named[row["message_id"]].append(row["name"])
        settled = self._db.execute(
            "select m.id from json_each(?) w join message m on m.id = w.value"
            f" where {_ROLE} = 'user' or {_COMPLETED} is not null",
            (wanted,),
        ).fetchall()
        found = {name: known[name] if name in known else tuple(named[name]) for name in messages}
        known.update((row["id"], found[row["id"]]) for row in settled)
        return found

    def answers(self, session: str) -> Iterator[tuple[str, int, str]]:
        rows = self._db.execute(
            f"select m.id, m.time_created, {_CWD} as cwd from message m"
            f" where m.session_id = ? and {_ROLE} = 'assistant' order by m.time_created, m.id",
            (session,),
        )
        return ((row["id"], row["time_created"], row["cwd"]) for row in rows if isinstance(row["cwd"], str))

    def created_ms(self, session: str) -> dict[str, int]:
        rows = self._db.execute(
            "select id, time_created from message where session_id = ? order by time_created, id", (session,)
        )
        return {row["id"]: row["time_created"] for row in rows}

    def weighed(self, session: str, messages: list[str]) -> Iterable[tuple[str, int, int]]:
        (count,) = self._db.execute("select count(*) from message where session_id = ?", (session,)).fetchone()
        wanted = set(messages)
        # Of a whole session the rows are read as they lie, of a few messages from the index.
        is_whole = len(wanted) == count
        for table, message in (("message", "id"), ("part", "message_id")):
            which = "session_id = ?" if is_whole else f"{message} in (select value from json_each(?))"
            rows = self._db.execute(
                f"select {message} as message, {_WRITTEN} from {table} where {which} group by {message}",
                (session if is_whole else json.dumps(messages),),
            )
            yield from ((row["message"], row["rows"], row["updated_ms"]) for row in rows if row["message"] in wanted)

    def weight(self, session: str) -> tuple[int, int]:
        found = [
            self._db.execute(f"select {_WRITTEN} from {table} where {name} = ?", (session,)).fetchone()
            for table, name in (("session", "id"), ("message", "session_id"), ("part", "session_id"))
        ]
        return sum(row["rows"] for row in found), max(int(row["updated_ms"]) for row in found)


def info(row: sqlite3.Row, parent: str | None) -> dict[str, Json]:
    """A row of either table of sessions."""
    told: dict[str, Json] = {
        "id": row["id"],
        "title": row["title"],
        "directory": row["directory"],
        "version": row["version"],
        "time": {"created": row["time_created"], "updated": row["time_updated"]}
        | ({"archived": row["time_archived"]} if row["time_archived"] is not None else {}),
    }
    if parent is not None:
        told["parentID"] = parent
    if "revert" in row.keys() and row["revert"]:  # noqa: SIM118 - a row is no mapping
        told["revert"] = fields(row["revert"])
    return told


def fields(data: object) -> dict[str, Json]:
    """The JSON object in a column; an empty one for anything else, which is unreadable for `parse`."""
    try:
        value = json.loads(data) if isinstance(data, str | bytes) else None
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _head(row: sqlite3.Row) -> Head:
    name, parent, directory, created_ms, updated_ms = row
    return Head(name, parent, str(directory or ""), created_ms or 0, updated_ms or 0)
