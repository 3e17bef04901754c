"""OpenCode's own store, read and never written: the SQLite generation of OpenCode 1.18.

One file holds all projects; `session`, `message` and `part` are what `opencode export` prints: a row's ids and its
`data` together are one `info` or one part, messages in the order of creation time and id, parts in that of their ids
(OpenCode 1.18.33). Every question is one short read; `access` says how.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from app.opencode.access import Access, NewerError, StoreError, is_newer
from app.opencode.files import File
from app.opencode.folders import data_folder
from app.parse import parse
from app.transcript import Json, Transcript, TranscriptError

_IS_TIME = "time_updated between 0 and 253402300799999"
"""Up to the year 9999. A row with something else there has no say in when a session changed."""


@dataclass(frozen=True, slots=True)
class StoredSession:
    """A root session: one that no call of a parent's turn names.

    A subagent is one, too, whose parent or whose call is gone, or that a plugin has started without a call.
    """

    id: str
    directory: str
    created_ms: int
    updated_ms: int
    """As OpenCode keeps it. What changed inside of its turns is in `Store.changed_ms`."""


def store_file(environ: Mapping[str, str]) -> Path:
    """Where OpenCode keeps it, unless told otherwise by OPENCODE_DB."""
    named = environ.get("OPENCODE_DB")
    if named and Path(named).is_absolute():
        return Path(named)
    return data_folder(environ) / (named or "opencode.db")


class Store:
    """The store in one file. All methods raise StoreError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._access = Access(path)

    def kept_open(self) -> AbstractContextManager[None]:
        """As `Access` has it."""
        return self._access.kept_open()

    def is_newer(self) -> bool:
        """Whether it holds sessions of OpenCode 2, beside those of 1.x or alone."""
        try:
            return self._access.ask(is_newer)
        except NewerError:
            return True

    def roots(self, directory: str | None = None, among: Collection[str] | None = None) -> list[StoredSession]:
        """Those of all projects, or those that were started in `directory`; the oldest first.

        Only those `among` others: to tell a subagent, all that was said in its parent is read.
        """

        def listed(db: sqlite3.Connection) -> list[sqlite3.Row]:
            rows = db.execute(
                "select id, directory, cast(time_created as integer), cast(time_updated as integer),"
                " (select p.id from session p where p.id = s.parent_id) as parent from session s"
                " where ? is null or directory = ? order by time_created, id",
                (directory, directory),
            ).fetchall()
            rows = [row for row in rows if among is None or row["id"] in among]
            called = _called(db, {row["parent"] for row in rows} - {None})
            return [row for row in rows if (row["parent"], row["id"]) not in called]

        return [StoredSession(*row[:4]) for row in self._access.ask(listed)]

    def uncalled(self, session: str) -> list[str]:
        """The sessions below this one that no call of a parent's turn names."""
        rows = self._access.ask(
            lambda db: db.execute(
                "with recursive below(id) as (select id from session where parent_id = ?"
                "  union select s.id from session s join below b on s.parent_id = b.id) select id from below",
                (session,),
            ).fetchall()
        )
        return [one.id for one in self.roots(among={row["id"] for row in rows})] if rows else []

    def changed_ms(self, session: str) -> int | None:
        """When anything of the session or of its subagents was written last; None when it is not there."""
        return self._changes("id = ?", session).get(session)

    def changes(self, directory: str) -> dict[str, int]:
        """`changed_ms` of all roots that were started in a directory."""
        return self._changes("directory = ?", directory)

    def _changes(self, condition: str, argument: str) -> dict[str, int]:
        rows = self._access.ask(
            lambda db: db.execute(
                f"with recursive family(root, id) as (select id, id from session where {condition}"
                "  union select f.root, s.id from session s join family f on s.parent_id = f.id)"
                f" select f.root, max(max(iif(s.{_IS_TIME}, s.time_updated, 0),"
                f"  coalesce((select max(time_updated) from message where session_id = s.id and {_IS_TIME}), 0),"
                f"  coalesce((select max(time_updated) from part where session_id = s.id and {_IS_TIME}), 0)))"
                " as changed_ms from family f join session s on s.id = f.id group by f.root",
                (argument,),
            ).fetchall()
        )
        return {row["root"]: int(row["changed_ms"]) for row in rows}

    def files(self, session: str) -> list[File]:
        """A session and, after it, the subagents that its task calls name, each as `opencode export` would put it.

        In memory only. Raises StoreError when there is no such session.
        """
        try:
            found = self._access.ask(lambda db: _family(db, session))
        except TranscriptError as error:
            raise StoreError(str(error)) from None
        if not found:
            raise StoreError(f"OpenCode's store {self.path} holds no session {session}")
        return [File(name, json.dumps(entry).encode()) for name, entry in found.items()]

    def transcript(self, session: str) -> Transcript | None:
        """The session with its subagents; None when it is not there. Raises TranscriptError."""
        entries: list[Json] = [*self._access.ask(lambda db: _family(db, session)).values()]
        return parse({"root": session, "sessions": entries}) if entries else None

    def turn(self, session: str, turn: str | None) -> Transcript | None:
        """The session with this one of its turns (None: its first), as the whole transcript has it.

        Of the turns before it only the subagents that they name are read. None when it is not there. Raises
        TranscriptError.
        """
        entries = self._access.ask(lambda db: _turn(db, session, turn))
        if entries is None:
            return None
        found = parse({"root": session, "sessions": entries})
        turns = tuple(one for one in found.turns if turn is None or one.id == turn)[:1]
        return Transcript(found.session, turns) if turns else None

    def holds(self, session: str, turn: str | None) -> bool:
        """Whether the turn's user message, or an answer to it, is there (None: any turn). Looks into no text."""
        return self._access.ask(lambda db: _span(db, session, turn)) is not None


def _family(db: sqlite3.Connection, session: str) -> dict[str, dict[str, Json]]:
    found: dict[str, dict[str, Json]] = {}
    ahead = [session]
    while ahead:
        name = ahead.pop()
        entry = None if name in found else _entry(db, name)
        if entry is not None:
            found[name] = entry
            ahead += _subagents(db, name)
    return found


_WHOLE = (0, "", 1 << 62, "")
# A row that is not JSON costs its own session, where it is read, and no question about others.
_PARENT = "iif(json_valid(m.data), json_extract(m.data, '$.parentID'), null)"


def _turn(db: sqlite3.Connection, session: str, turn: str | None) -> list[Json] | None:
    span = _span(db, session, turn)
    entry = _entry(db, session, span) if span is not None else None
    if span is None or entry is None:
        return None
    (entry["first_index"],) = db.execute(
        "select count(*) from message where session_id = ? and (time_created, id) < (?, ?)", (session, *span[:2])
    ).fetchone()
    # A subagent belongs to the first call that names it.
    elsewhere = {*_subagents(db, session, (0, "", span[0], span[1])), session}
    entries: dict[str, Json] = {session: entry}
    for name in _subagents(db, session, span):
        if name not in elsewhere:
            entries |= {child: found for child, found in _family(db, name).items() if child not in entries}
    return list(entries.values())


def _span(db: sqlite3.Connection, session: str, turn: str | None) -> tuple[int, str, int, str] | None:
    """From the turn's first message to before the one after its last: what (time_created, id) to begin and end at."""
    if turn is None:
        row = db.execute(
            f"select coalesce({_PARENT}, m.id) as turn from message m join session s on s.id = m.session_id"
            # Older ones are mostly a fork's copies.
            " where m.session_id = ? order by m.time_created < s.time_created, m.time_created, m.id limit 1",
            (session,),
        ).fetchone()
        return None if row is None else _span(db, session, row["turn"])
    rows = db.execute(
        "select m.time_created, m.id from message m where m.session_id = :session"
        f" and (m.id = :turn or {_PARENT} = :turn) order by m.time_created, m.id",
        {"session": session, "turn": turn},
    ).fetchall()
    if not rows:
        return None
    last = rows[-1]
    return rows[0]["time_created"], rows[0]["id"], last["time_created"], f"{last['id']}\0"


def _entry(db: sqlite3.Connection, session: str, span: tuple[int, str, int, str] = _WHOLE) -> dict[str, Json] | None:
    row = db.execute("select * from session where id = ?", (session,)).fetchone()
    if row is None:
        return None
    info: dict[str, Json] = {
        "id": row["id"],
        "title": row["title"],
        "directory": row["directory"],
        "version": row["version"],
        "time": {"created": row["time_created"], "updated": row["time_updated"]}
        | ({"archived": row["time_archived"]} if row["time_archived"] is not None else {}),
    }
    if row["parent_id"] is not None:
        info["parentID"] = row["parent_id"]
    if "revert" in row.keys() and row["revert"]:  # noqa: SIM118 - a row is no mapping
        info["revert"] = _fields(row["revert"])
    messages: list[Json] = []
    rows = db.execute(
        "select id, data from message where session_id = ? and (time_created, id) >= (?, ?)"
        " and (time_created, id) < (?, ?) order by time_created, id",
        (session, *span),
    ).fetchall()
    for message in rows:
        ids = {"messageID": message["id"], "sessionID": session}
        found = db.execute("select id, data from part where message_id = ? order by id", (message["id"],))
        parts: list[Json] = [{**_fields(part["data"]), "id": part["id"], **ids} for part in found]
        info_of = {**_fields(message["data"]), "id": message["id"], "sessionID": session}
        messages.append({"info": info_of, "parts": parts})
    return {"info": info, "messages": messages}


def _fields(data: object) -> dict[str, Json]:
    """The JSON object in a column; an empty one for anything else, which is unreadable for `parse`."""
    try:
        value = json.loads(data) if isinstance(data, str | bytes) else None
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


# What a tool call names as its subagent.
_CALLED = "iif(json_valid(p.data), json_extract(p.data, '$.state.metadata.sessionId'), null)"
_TYPE = "iif(json_valid(p.data), json_extract(p.data, '$.type'), null)"


def _called(db: sqlite3.Connection, parents: Collection[str]) -> set[tuple[str, str]]:
    """(session, subagent) for each subagent that a tool call of one of these sessions names."""
    rows = db.execute(
        f"select distinct p.session_id, {_CALLED} as name from part p join message m on m.id = p.message_id"
        # Most parts are long and name nobody: not every one is taken apart.
        " where p.session_id in (select value from json_each(?)) and instr(p.data, '\"sessionId\"')"
        f" and {_TYPE} = 'tool' and name is not null",
        (json.dumps(list(parents)),),
    )
    return {(row["session_id"], row["name"]) for row in rows}


def _subagents(db: sqlite3.Connection, session: str, span: tuple[int, str, int, str] = _WHOLE) -> list[str]:
    """The sessions that tool calls of these messages name, in order."""
    rows = db.execute(
        f"select {_CALLED} as name, {_TYPE} as type from message m join part p"
        " on p.message_id = m.id where m.session_id = ? and (m.time_created, m.id) >= (?, ?)"
        " and (m.time_created, m.id) < (?, ?) order by m.time_created, m.id, p.id",
        (session, *span),
    )
    return [row["name"] for row in rows if row["type"] == "tool" and isinstance(row["name"], str)]
